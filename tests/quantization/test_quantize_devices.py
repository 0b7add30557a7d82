"""Devices and memory of a quantization: what is refused, what is bounded, and that tensors are made where their neighbours are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import qtk.quantization
from qtk import machine
from qtk.errors import InputError, MachineError
from qtk.quantization import quantize as pipeline
from qtk.quantization.blocks.activations import ActivationBudget

# Where the tensors of a block meet.
FILES = (
    "rtn",
    "grid",
    "awq",
    "awq_block",
    "gptq",
    "gptq_block",
    "tune",
    "tuned_block",
    "streams",
    "judge",
    "layer_log",
)
FACTORIES = {"zeros", "ones", "empty", "full", "arange", "eye", "tensor", "linspace", "rand", "randn", "randperm"}


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_made_on_a_named_device(name: str) -> None:
    """A tensor made on the CPU beside those of a GPU fails there only, and no GPU runs these tests."""
    tree = ast.parse((Path(qtk.quantization.__path__[0]) / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    made = [c for c in calls if isinstance(c.func.value, ast.Name) and c.func.value.id == "torch"]
    homeless = [
        c.lineno for c in made if c.func.attr in FACTORIES and "device" not in {keyword.arg for keyword in c.keywords}
    ]
    assert not homeless, f"{name}.py, lines {homeless}: no device="


@pytest.mark.parametrize("name", ["foo", "cuda:x", "gpu", "cpu:1", ""])
def test_what_is_no_device_is_wrong_input(name: str) -> None:
    with pytest.raises(InputError, match="there are auto, cpu, cuda"):
        pipeline.compute_device(name)


def test_a_gpu_that_is_not_there_is_the_machine_s_lack(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pipeline.compute_device("cuda:1") == torch.device("cuda:1")
    assert pipeline.compute_device("auto").type == "cuda"
    with pytest.raises(MachineError, match="torch sees 2 GPUs"):
        pipeline.compute_device("cuda:9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pipeline.compute_device("auto").type == "cpu"
    with pytest.raises(MachineError, match="torch sees no GPU"):
        pipeline.compute_device("cuda")


def test_bf16_on_a_gpu_only_where_it_has_it(monkeypatch) -> None:
    rows = object()
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert pipeline._compute_dtype(torch.device("cuda"), rows) == dtype
    assert pipeline._compute_dtype(torch.device("cpu"), None) == "float32"


def test_the_budget_is_never_passed(tmp_path) -> None:
    budget = ActivationBudget(10_000, tmp_path)
    stores = [budget.store(rows, 10, 8, torch.bfloat16) for rows in (20, 30, 40, 1, 5)]
    held = sum(s.nbytes for s in stores if s.file is None)
    assert held == budget.used_bytes <= 10_000
    assert budget.spilled_bytes == sum(s.nbytes for s in stores if s.file is not None) > 0
    for store in stores:
        budget.release(store)
    assert budget.used_bytes == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("effort", ["fast", "default", "best"])
def test_no_effort_passes_the_budget(tiny, tmp_path, monkeypatch, effort: str) -> None:
    from qtk.calibration.options import CalibrationOptions
    from qtk.quantization.options import QuantizeOptions

    held: list[int] = []
    original = ActivationBudget.store

    def store(self, *arguments):
        result = original(self, *arguments)
        held.append(self.used_bytes)
        assert self.limit_bytes == 300_000
        return result

    monkeypatch.setattr(ActivationBudget, "store", store)
    options = QuantizeOptions(effort=effort, memory=0.0003)
    report = pipeline.quantize_model(tiny(), tmp_path / "out", options, CalibrationOptions(samples=16, seq_len=48))
    assert 0 < max(held) <= 300_000
    assert report.spilled_bytes > 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_s_limit_counts_as_the_memory(tmp_path, version: int) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    base, line = tmp_path / "memory", "4:memory:/pod/box\n"
    if version == 2:
        names, base, line = ("memory.max", "memory.current", "inactive_file"), tmp_path, "0::/pod/box\n"
    (base / "pod" / "box").mkdir(parents=True)
    (tmp_path / "membership").write_text(line)
    for place, limit in (
        (base, "max" if version == 2 else 2**63 - 4096),
        (base / "pod", 4000),
        (base / "pod/box", 9000),
    ):
        (place / names[0]).write_text(f"{limit}\n")
        (place / names[1]).write_text("1500\n")
        (place / "memory.stat").write_text(f"anon 1\n{names[2]} 500\n")
    assert sorted(machine._cgroup_memory(tmp_path, tmp_path / "membership")) == [(4000, 1000), (9000, 1000)]
    assert 0 < machine.available_memory() <= machine.total_memory()


def test_threads_are_those_asked_for_or_of_the_environment_and_never_more_than_there_are(monkeypatch) -> None:
    cores = machine.usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.threads_for(None) == 1
    assert machine.threads_for(cores) == cores
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert machine.threads_for(None) == cores
    assert machine.threads_for(cores + 5) == cores
