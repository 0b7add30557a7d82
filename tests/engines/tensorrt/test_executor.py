"""The layer that owns device buffers, with stand-ins of TensorRT and of CUDA whose device is this machine's memory.

What only a GPU can show (kernels, streams, graphs) is left to `qtk accept`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.executors import TO_THE_END
from support.tensorrt_stand_in import THREE, Config, Device, Plan, RtxConfig, StandInBackend, module_of, tensorrt

from qtk.bench.options import AcceptOptions
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.engines.tensorrt import executor as tensorrt_executor
from qtk.errors import InputError, MachineError
from qtk.quantization.scheme_model import LinearScheme
from qtk.release.accept import accept
from qtk.targets.runtimes import RUNTIMES


@pytest.fixture
def device(tiny, monkeypatch, pretend_gpu) -> Device:
    """A machine with an L4 and an A10, TensorRT-RTX and CUDA, all stand-ins."""
    for variant in ("llama", "mistral-window", "qwen3"):
        tiny(variant)  # made by transformers, which looks at what is installed
    device = Device()
    pretend_gpu("8.6")
    monkeypatch.setitem(sys.modules, "cuda", module_of("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", module_of("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", device.module())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt(device, RtxConfig))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(device, Config))
    return device


@pytest.fixture
def plans(tiny, tmp_path, monkeypatch, write_quantized):
    """plans("llama", stages=THREE) -> an engine directory whose plans the stand-ins load: frozen ONNX graphs."""
    for name in ("tensorrt", "tensorrt-full"):
        engine = RUNTIMES[name].engine
        assert engine is not None
        stand_in = replace(engine, builder="support.tensorrt_stand_in:StandInBackend")
        monkeypatch.setitem(RUNTIMES, name, replace(RUNTIMES[name], engine=stand_in))

    def make(variant: str = "llama", stages: list[tuple[int, int]] = THREE, **options: Any) -> Path:
        monkeypatch.setattr(StandInBackend, "stages", stages)
        full = options.get("backend") == "tensorrt-full"
        scheme = LinearScheme(4, 64 if full else 32, True)
        model = write_quantized(tiny(variant), tmp_path / f"q-{variant}", "gptq", scheme)
        if full:
            make_scales_positive(model)
        settings = {"gpu": "a10", "max_input_len": 48, "max_output_len": 16, "max_batch_size": 2, **options}
        build_engine(model, tmp_path / variant, BuildOptions(**settings))
        return tmp_path / variant

    return make


def make_scales_positive(model: Path) -> None:
    """Turns a checkpoint into another one that full TensorRT takes."""
    tensors = load_file(model / "model.safetensors")
    tensors |= {name: tensor.abs() for name, tensor in tensors.items() if name.endswith(".scales")}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, 320, length).tolist()


@pytest.mark.parametrize(
    ("variant", "stages"),
    [("llama", [(0, 3)]), ("llama", THREE), ("mistral-window", THREE), ("qwen3", [(0, 1), (1, 3)])],
)
def test_stages_on_a_device_give_what_the_processor_gives(plans, device, tmp_path, variant: str, stages: list) -> None:
    """Unequal rows in a batch, scoring in pieces, and two calls after one another, as ONNX Runtime computes them."""
    engine = plans(variant, stages)
    cpu = BuildOptions(dtype="float16", accuracy_level=0, max_input_len=48, max_output_len=16, max_batch_size=2)
    build_engine(tmp_path / f"q-{variant}", tmp_path / "cpu", cpu)
    rows = [prompt(31, 1), prompt(18, 2)]
    with DecoderSession.open(engine) as session, DecoderSession.open(tmp_path / "cpu", 1) as expected:
        assert device.chosen == [1], "the L4 comes first and is not what the plan is for"
        ours, theirs = session.logits(rows), expected.logits(rows)
        for number, row in enumerate(rows):
            np.testing.assert_allclose(ours[number, : len(row)], theirs[number, : len(row)], atol=0.03)
        for _ in range(2):
            made = session.generate(rows, 12, TO_THE_END).tokens
            assert made == expected.generate(rows, 12, TO_THE_END).tokens
        assert made[0] == session.generate([rows[0]], 12, TO_THE_END).tokens[0]
        blocks = len(device.blocks)
    # Four whole-number inputs, the mask, the logits, keys and values of three blocks; between stages two hidden states
    # and one workspace.
    assert blocks == 6 + 2 * 3 + min(2, len(stages) - 1) + (len(stages) > 1)
    assert (device.blocks, device.freed) == ({}, blocks), "close gives every buffer back"


def test_bfloat16_is_handed_over_as_such(plans, device, tmp_path) -> None:
    with DecoderSession.open(plans("llama", [(0, 2), (2, 3)], dtype="bfloat16")) as session:
        logits = session.logits([prompt(9)])
    build_engine(tmp_path / "q-llama", tmp_path / "cpu", BuildOptions(accuracy_level=0, lm_head_bits="16"))
    with DecoderSession.open(tmp_path / "cpu", 1) as expected:
        assert np.abs(logits - expected.logits([prompt(9)])).max() < 0.3


def test_kernels_are_kept_beside_the_engine_and_found_again(plans, device, tmp_path, monkeypatch, capsys) -> None:
    engine = plans()
    cache = tmp_path / "llama.runtime-cache"
    monkeypatch.chdir(engine)
    with DecoderSession.open(".") as session:
        assert session.compiled_before is False
        session.generate([prompt(5)], 1)
        assert not cache.exists(), "a prompt alone: the decode step is not compiled yet"
        session.generate([prompt(5)], 3, TO_THE_END)
        assert cache.read_bytes() == b"kernels of this driver"
        cache.unlink()
    assert cache.is_file(), "kept at the end too, with all that came later"
    with DecoderSession.open(engine) as session:
        assert session.compiled_before is True
    cache.write_bytes(b"kernels of another driver")
    with DecoderSession.open(engine) as session:
        assert session.compiled_before is False
    assert cache.read_bytes() == b"kernels of this driver"
    assert "so kernels are compiled again" in capsys.readouterr().err
    cache.unlink()
    cache.mkdir()
    with DecoderSession.open(engine) as session:
        session.generate([prompt(5)], 3, TO_THE_END)
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial"))


def test_acceptance_on_a_device(plans, device, tmp_path) -> None:
    engine = plans()
    quick = AcceptOptions(shapes="16/8,40/16", seconds=0, reference=tmp_path / "q-llama", tolerance=0.5)
    record = accept(engine, quick)
    assert record.verdict == "passed", record.checks
    assert record.checks_not_run == {}
    memory = next(check for check in record.checks if check.name == "memory")
    assert memory.figure is not None
    assert 0 < memory.figure < 1
    assert len(device.chosen) == 1, "loaded once, whatever is measured on it"
    assert (record.compiled_before, accept(engine, quick).compiled_before) == (False, True)
    assert record.latency is not None
    assert "with the compiling of its kernels" in record.latency.engines[0].first_call


def test_messages_go_to_stderr(plans, device, capsys) -> None:
    DecoderSession.open(plans()).close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "TensorRT: a driver is old" in said.err
    assert "only information" not in said.err


def test_full_tensorrt_has_no_such_cache(plans, device, tmp_path) -> None:
    with DecoderSession.open(plans(backend="tensorrt-full")) as session:
        assert session.compiled_before is None
        assert len(session.generate([prompt(5)], 3, TO_THE_END).tokens[0]) == 3
    assert not (tmp_path / "llama.runtime-cache").exists()


def test_a_damaged_plan_is_named(plans, device) -> None:
    engine = plans()
    (engine / "stage1.plan").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"stage1\.plan: TensorRT cannot load"):
        DecoderSession.open(engine)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("makes_contexts", False, r"could not make a context of stage0\.plan"),
        ("refuses_shapes", True, r"could not take input_ids \[1, 5\] in stage0\.plan"),
        ("runs", False, r"could not run stage0\.plan"),
        ("device_memory_size_v2", 1 << 40, "cudaMalloc failed: cudaErrorMemoryAllocation"),
    ],
)
def test_a_call_that_tensorrt_or_cuda_fails_is_a_sentence(plans, device, monkeypatch, name, value, words) -> None:
    engine = plans()
    monkeypatch.setattr(Plan, name, value)
    with pytest.raises(MachineError, match=words):
        DecoderSession.open(engine).generate([prompt(5)], 2)


def test_a_machine_without_the_gpu_is_told_so(plans, device) -> None:
    engine = plans()
    device.capabilities = [(8, 9)]
    with pytest.raises(MachineError, match=r"needs a GPU of SM 8\.6; CUDA sees 8\.9"):
        DecoderSession.open(engine)


def test_a_machine_without_cuda_is_told_so(plans, device, monkeypatch) -> None:
    engine = plans()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MachineError, match="needs the package cuda-python: "):
        DecoderSession.open(engine)


def test_hidden_gpus_are_named_as_such(plans, device, monkeypatch) -> None:
    engine = plans()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MachineError, match=r"GPUs here: none \(CUDA_VISIBLE_DEVICES hides others\)"):
        DecoderSession.open(engine)


def test_another_version_of_the_library_is_refused(plans, device) -> None:
    engine = plans()
    sys.modules["tensorrt_rtx"].__version__ = "1.8.0"  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"compiled by tensorrt-rtx-cu13 1\.7\.1, and this machine has 1\.8\.0"):
        DecoderSession.open(engine)


def test_the_layer_that_cannot_run_here_stays_thin() -> None:
    assert len(Path(tensorrt_executor.__file__).read_text().splitlines()) < 200
