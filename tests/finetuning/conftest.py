"""Data of two small tasks, and trainings of a tiny model on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qtk.finetuning.finetune import finetune
from qtk.finetuning.options import FinetuneOptions
from qtk.finetuning.record import FinetuneReport

Train = Callable[..., FinetuneReport]
SMALL = {
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "seq_len": 64,
    "chat_format": "codefuse",
    "learning_rate": 5e-3,
    "data_split": "80,20,0",
    "batch_size": 4,
    "micro_batch": 2,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two files of rows of several lengths: 10 of the task `add`, 5 of `spell`."""
    root = tmp_path_factory.mktemp("data")
    add = [{"prompt": f"{i} + {i}", "answer": f"{2 * i}" + "!" * (i % 3)} for i in range(10)]
    spell = [
        {"instruction": "Spell", "input": "abc"[: i % 3 + 1], "output": " ".join("abcde"[: i + 1])} for i in range(5)
    ]
    for name, rows in (("add", add), ("spell", spell)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root / "add.jsonl"), str(root / "spell.jsonl")


@pytest.fixture
def train(tiny, two_tasks, tmp_path: Path, monkeypatch) -> Train:
    """train("name", rank=2, ...) -> the report of a training of the tiny model in tmp_path / "name", in float32."""
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32")

    def run(name: str, *, base: Path | None = None, resume: bool = False, **changes: object) -> FinetuneReport:
        options = FinetuneOptions.model_validate({**SMALL, "data": two_tasks, "epochs": 2, **changes})
        return finetune(base or tiny("llama"), tmp_path / name, options, resume=resume)

    return run


def adapter_of(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter directory."""
    from safetensors.torch import load_file

    return load_file(directory / "adapter_model.safetensors")


@pytest.fixture(scope="session", name="adapter_of")
def _adapter_of():
    return adapter_of
