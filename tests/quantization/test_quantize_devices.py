"""Devices and memory of a quantization: what is refused, what is bounded, and that tensors are made where their neighbours are."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import pytest
import torch

import qtk.quantization
from qtk import machine
from qtk.calibration.options import CalibrationOptions
from qtk.errors import InputError, MachineError
from qtk.quantization import quantize
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.compute import compute_device, compute_dtype
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

# Where the tensors of a block meet.
PLACES = ("algorithms", "blocks")
FACTORIES = {"zeros", "ones", "empty", "full", "arange", "eye", "tensor", "linspace", "rand", "randn", "randperm"}


@pytest.mark.parametrize("place", PLACES)
def test_every_tensor_is_made_on_a_named_device(place: str) -> None:
    """A tensor made on the CPU beside those of a GPU fails there only, and no GPU runs these tests."""
    homeless = []
    for path in sorted((Path(qtk.quantization.__path__[0]) / place).glob("*.py")):
        if path.name == "activations.py":  # which keeps them in the machine's memory
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        homeless += [f"{path.name}, line {call.lineno}" for call in calls if _makes_a_tensor_anywhere(call)]
    assert not homeless, "no device="


def _makes_a_tensor_anywhere(call: ast.Call) -> bool:
    """Whether the call is torch.zeros(...) or the like without a device."""
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    named = "device" in {keyword.arg for keyword in call.keywords}
    return function.value.id == "torch" and function.attr in FACTORIES and not named


@pytest.mark.parametrize("name", ["foo", "cuda:x", "gpu", "cpu:1", ""])
def test_what_is_no_device_is_wrong_input(name: str) -> None:
    with pytest.raises(InputError, match="there are auto, cpu, cuda"):
        compute_device(name)


def test_a_gpu_that_is_not_there_is_the_machine_s_lack(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compute_device("cuda:1") == torch.device("cuda:1")
    assert compute_device("auto").type == "cuda"
    with pytest.raises(MachineError, match="torch sees 2 GPUs"):
        compute_device("cuda:9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device("auto").type == "cpu"
    with pytest.raises(MachineError, match="torch sees no GPU"):
        compute_device("cuda")


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bf16_where_it_has_it(monkeypatch, supported: bool, dtype: torch.dtype) -> None:
    monkeypatch.delenv("QTK_COMPUTE_DTYPE", raising=False)  # it would decide instead
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert compute_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_environment_decides_the_dtype(monkeypatch, device: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: dtype == torch.float32)
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", str(dtype).removeprefix("torch."))
    assert compute_dtype(torch.device(device)) == dtype


@pytest.mark.parametrize("quick", [torch.bfloat16, torch.float32])
def test_waiting_for_a_busy_processor_does_not_decide_the_dtype(monkeypatch, quick: torch.dtype) -> None:
    class Matrix:
        def __init__(self, *size: int, dtype: torch.dtype) -> None:
            self.work, self.wait = (0.0002, 0.004) if dtype == quick else (0.001, 0.0)

        def __matmul__(self, other: Matrix) -> None:
            time.sleep(self.wait)
            start = time.thread_time()
            while time.thread_time() - start < self.work:
                pass

    monkeypatch.setattr(torch, "ones", Matrix)
    assert machine._timed_matmul_dtype.__wrapped__() == quick


def test_a_dtype_that_is_not_known_is_wrong_input(monkeypatch) -> None:
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float16")
    with pytest.raises(InputError, match="it takes auto, float32, bfloat16"):
        compute_dtype(torch.device("cpu"))


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
def test_no_effort_passes_the_budget(tiny, tmp_path, compute_dtype: str, activations_in_memory, effort: str) -> None:
    limit = 150_000 * getattr(torch, compute_dtype).itemsize  # room for some of the rows in either dtype
    activations_in_memory(limit)
    options = QuantizeOptions(effort=effort)
    report = quantize_model(tiny(), tmp_path / "out", options, CalibrationOptions(samples=16, seq_len=48))
    assert 0 < report.activation_bytes <= limit
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
    assert sorted(machine.cgroup_memory(tmp_path, tmp_path / "membership")) == [(4000, 1000), (9000, 1000)]
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


def test_a_busy_machine_gets_fewer_threads_unless_it_is_told(monkeypatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chosen = {busy: machine.unhindered_threads(None, lambda busy=busy: busy) for busy in (0.0, 0.4, 1.2, 2.6, 9.0)}
    assert {busy: choice.threads for busy, choice in chosen.items()} == {0.0: 4, 0.4: 4, 1.2: 3, 2.6: 1, 9.0: 1}
    assert chosen[0.0].sentence is None
    assert "keep 9.0 of 4 cores busy, so this one computes with 1 thread: " in chosen[9.0].sentence
    assert machine.unhindered_threads(3, lambda: 9.0) == machine.ThreadChoice(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine.unhindered_threads(None, lambda: 9.0) == machine.ThreadChoice(2)


def test_what_others_do_is_seen_and_what_this_process_does_is_not() -> None:
    """Sums of this process itself are taken off: they would keep it from its own cores."""
    assert 0 <= machine.busy_cores(0.1) <= (os.cpu_count() or 1) + 1


def test_a_resumed_run_computes_with_as_many_threads_as_it_began_with(tiny, tmp_path, monkeypatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    calibration = CalibrationOptions(samples=8, seq_len=48)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quantize, "read_back", stopped)
        quantize_model(tiny(), tmp_path / "out", QuantizeOptions(threads=1), calibration)
    monkeypatch.setattr(machine, "busy_cores", lambda: pytest.fail("the load must not decide"))
    quantize_model(tiny(), tmp_path / "out", QuantizeOptions(), calibration, resume=True)
    assert torch.get_num_threads() == 1
