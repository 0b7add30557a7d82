"""Bad input of `qtk finetune`: a sentence that says what to do, the right exit code, and nothing left under the final name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qtk.errors import InputError
from qtk.finetuning.finetune import finetune
from qtk.finetuning.options import FinetuneOptions

Refused = Callable[..., str]
PAIR = {"prompt": "What?", "answer": "That."}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def refused(run_qtk, tiny, tmp_path: Path) -> Refused:
    """refused(*words, base=...) -> stderr of a command that ends with exit code 2 and leaves nothing."""

    def run(*words: object, base: Path | None = None) -> str:
        given = words if "--data" in words else (*words, "--data", write(tmp_path / "data.jsonl", [PAIR] * 30))
        settings = ("--rank", 4, "--seq-len", 64, "--chat-format", "codefuse", "--device", "cpu")
        result = run_qtk("finetune", base or tiny("llama"), "-o", tmp_path / "out", *settings, *given)
        assert result.returncode == 2, result.stderr
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial").exists()
        return result.stderr

    return run


def test_no_data(run_qtk, tiny, tmp_path: Path) -> None:
    result = run_qtk("finetune", tiny("llama"), "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "There is no data: give --data" in result.stderr


def test_rows_that_are_all_too_long_are_counted_by_task(refused, tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"prompt": "x" * 100, "answer": "y"}] * 3)
    some = write(tmp_path / "some.jsonl", [PAIR] * 9 + [{"prompt": "x" * 100, "answer": "y"}])
    said = refused("--data", long, "--data", some)
    assert "No rows are left of a task, because they are longer than 64 tokens" in said
    assert "long: 3 of 3 rows" in said
    assert "some: 1 of 10 rows" in said


def test_rows_without_an_answer_are_named_by_file_and_line(refused, tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "What?", "answer": ""}, PAIR, {"chat_rounds": [{"role": "human", "content": "?"}]}]
    said = refused("--data", write(tmp_path / "task.jsonl", rows))
    assert "task.jsonl, line 2: its answer is empty" in said
    assert "task.jsonl, line 4: no answer in chat_rounds" in said


def test_a_task_of_which_no_row_can_be_held_back(refused, tmp_path: Path) -> None:
    said = refused("--data", write(tmp_path / "task.jsonl", [PAIR]))
    assert "No row can be held back of task" in said
    assert "--data-split 100,0,0" in said


def test_a_tokenizer_without_an_end_token(refused, tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        config = json.loads((base / name).read_text())
        config.pop("eos_token", None)
        config.pop("eos_token_id", None)
        (base / name).write_text(json.dumps(config))
    assert "names an end token (eos_token)" in refused(base=base)


def test_a_base_with_an_adapter_beside_it(refused, tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    (base / "adapter_config.json").write_text("{}")
    assert "holds an adapter beside the model" in refused(base=base)


def test_an_adapter_in_place_of_the_base(refused, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "holds an adapter beside" in refused(base=tmp_path / "adapter")


def test_a_rank_larger_than_a_layer(refused) -> None:
    said = refused("--rank", 65)
    assert "--rank 65 is larger than a layer that it adapts" in said
    assert "k_proj has 64 outputs and 128 inputs" in said
    assert "gate_proj" not in said
    # Fewer layers, larger rank: only those that are adapted count.
    assert "q_proj" in refused("--rank", 129, "--target-modules", "q_proj")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--target-modules", "query_key_value"), "the model has no such linear. It has q_proj"),
        (("--seq-len", 9999), "longer than the model's context of 512 tokens"),
        (("--data-split", "2"), "give the shares"),
        (("--pack-across",), "pack_across needs padding pack"),
        (("--task-weight", 1, "--task-weight", 2), "task_weight is given 2 times for 1 tasks"),
        (("--min-lr", 1), "is above the learning rate"),
        (("--weighted-loss", "coba", "--data-split", "100,0,0"), "coba needs held-back rows"),
    ],
)
def test_options_that_do_not_fit(refused, words: tuple[object, ...], complaint: str) -> None:
    assert complaint in refused(*words)


def test_a_loss_that_is_not_a_number_names_step_and_rows_and_keeps_the_checkpoint(
    tiny, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32")
    data = write(tmp_path / "task.jsonl", [{"prompt": f"{i}", "answer": "!" * (i + 1)} for i in range(8)])
    options = FinetuneOptions(
        data=(str(data),),
        data_split="100,0,0",
        chat_format="codefuse",
        rank=4,
        seq_len=64,
        # A step of this size leaves numbers in the weights that a product cannot hold.
        learning_rate=1e25,
        min_lr=1,
        warmup=0,
        clip=0,
        batch_size=2,
        checkpoint_every=1,
        dropout=0,
    )
    with pytest.raises(InputError) as caught:
        finetune(tiny("llama"), tmp_path / "out", options)
    said = str(caught.value)
    assert "so the training stops" in said
    assert "task.jsonl, line" in said
    assert said.count("task.jsonl, line") == 2
    kept = tmp_path / "out.partial" / ".training" / "checkpoint-1"
    assert str(kept) in said
    assert (kept / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out").exists()


def test_a_resumption_with_other_options_or_data_is_refused(train, tmp_path: Path, two_tasks) -> None:
    work = tmp_path / "out.partial" / ".training"
    train("out", checkpoint_every=2)
    shutil.rmtree(tmp_path / "out")
    # What a stopped training leaves: made by hand here, the stop itself is tested elsewhere.
    from qtk.checkpoint.begun import BegunWork

    work.mkdir(parents=True)
    (tmp_path / ".out.qtk-lock").touch()
    BegunWork.now({"set of options": {}}, total=6, unit="step").write(work / "begun.json")
    (work / "state.json").write_text('{"step": 2}')
    with pytest.raises(InputError, match="begun with another"):
        train("out", resume=True)
    with pytest.raises(InputError, match="unfinished work: 2 of 6 steps done"):
        train("out")


def test_an_adapter_is_not_merged_into_a_base_that_another_adapter_changed(
    train, run_qtk, tiny, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    train("adapter", base=base)
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name] * 1.01}, base / "model.safetensors", metadata={"format": "pt"})
    words = ("merge", base, tmp_path / "adapter", "-o", tmp_path / "merged")
    result = run_qtk(*words)
    assert result.returncode == 2
    assert "its weights are not those that the adapter was trained on" in result.stderr
    assert run_qtk(*words, "--any-base").returncode == 0


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tiny, two_tasks, tmp_path: Path) -> None:
    """A disk that holds one checkpoint of about 0.5 MB, and not the next one beside it."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    place = tmp_path / "disk"
    place.mkdir()
    words = [sys.executable, "-m", "qtk", "finetune", tiny("llama"), "-o", place / "out", "--data", two_tasks[0]]
    words += ["--rank", "8", "--seq-len", "64", "--chat-format", "codefuse", "--checkpoint-every", "1", "--epochs", "9"]
    words += ["--data-split", "100,0,0", "--batch-size", "2", "--device", "cpu"]
    line = " ".join(map(str, words))
    script = f"mount -t tmpfs -o size=700k none {place} || exit 77; {line}; code=$?; find {place}; exit $code"
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "QTK_COMPUTE_DTYPE": "float32"},
    )
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip("this user cannot mount a disk")
    assert result.returncode == 4, result.stderr
    assert "The disk is full" in result.stderr
    assert "checkpoint-1/adapter_model.safetensors" in result.stdout
    assert "checkpoint-2" not in result.stdout
