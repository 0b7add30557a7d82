"""The `tensorrt` backend: real plans compiled here, without a GPU, for the GPUs they are meant for."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from support.tensorrt_stand_in import BoundedBackend, module_of

from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.engines.build import build_engine
from qtk.engines.description import Stage, read_description
from qtk.engines.memory import ModelBytes, model_bytes
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.engines.tensorrt.compiler import run_compiler
from qtk.engines.tensorrt.stages import (
    PEAK_BASE_BYTES,
    PEAK_PER_BYTE,
    check_plan_sizes,
    choose_stages,
    cut_stages,
    table_bytes,
)
from qtk.engines.tensorrt.worker import CompileRequest
from qtk.errors import InputError, MachineError
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme
from qtk.targets.runtimes import RUNTIMES

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed (extra tensorrt)"
)
INT4 = LinearScheme(4, 32, True)


@pytest.fixture(scope="module")
def int4(tiny, tmp_path_factory, write_quantized):
    """int4("qwen3") -> a tiny INT4 checkpoint of that variant."""
    made: dict[str, Path] = {}

    def get(variant: str = "llama") -> Path:
        if variant not in made:
            out = tmp_path_factory.mktemp("int4") / variant
            made[variant] = write_quantized(tiny(variant), out, "gptq", INT4)
        return made[variant]

    return get


def layers_of(engine: Path, stage: int = 0) -> list[dict]:
    return json.loads((engine / f"stage{stage}.layers.json").read_text())


@needs_tensorrt
@pytest.mark.parametrize(
    ("gpu", "variant"),
    [
        ("a10", "llama"),
        ("rtx5090", "mistral-window"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("a30", "qwen2"), ("l4", "qwen3"), ("a10", "llama-tied"))
        ),
    ],
)
def test_plans_hold_four_bit_weights_and_real_attention(int4, tmp_path, gpu: str, variant: str) -> None:
    engine = tmp_path / "engine"
    options = BuildOptions(gpu=gpu, max_input_len=200, max_output_len=50, max_batch_size=2)
    description = build_engine(int4(variant), engine, options)
    assert (description.backend, description.cache_length, description.dtype) == ("tensorrt", 256, "float16")
    kinds = [layer["kind"] for layer in layers_of(engine)]
    assert (kinds.count("KV_CACHE_UPDATE"), kinds.count("ATTENTION_INPUT")) == (6, 3)
    packed = [layer for layer in layers_of(engine) if layer["kind"] == "DEQUANTIZE"]
    assert len(packed) == 4 * 3
    assert {layer["inputs"][0] for layer in packed} == {"INT4"}
    cache = next(port for port in description.stages[0].inputs if port.name == "past_key.0")
    assert cache.shape == ("batch", 2, 256, 32)
    assert sorted(p.name for p in engine.glob("stage0*")) == [
        "stage0.build.json",
        "stage0.layers.json",
        "stage0.log",
        "stage0.plan",
    ]
    assert "tensorrt-rtx-cu13" in description.versions
    assert read_manifest(engine).options["gpu"] == gpu
    with pytest.raises(MachineError, match="GPU"):
        DecoderSession.open(engine)


@needs_tensorrt
def test_bfloat16_compiles_too_and_only_on_request(int4, tmp_path) -> None:
    """Its numbers are proved by onnx.reference (test_decoder.py): no processor runs them."""
    engine = tmp_path / "engine"
    description = build_engine(int4(), engine, BuildOptions(gpu="a10", dtype="bfloat16"))
    assert description.dtype == "bfloat16"
    assert {port.dtype for port in description.stages[0].outputs} == {"bfloat16"}
    kinds = {kind for layer in layers_of(engine) for kind in layer["outputs"]}
    assert "BF16" in kinds
    assert "HALF" not in kinds
    packed = [layer for layer in layers_of(engine) if layer["kind"] == "DEQUANTIZE"]
    assert {tuple(layer["inputs"]) for layer in packed} == {("INT4", "BF16")}
    with pytest.raises(InputError, match="--dtype bfloat16"):
        build_engine(int4(), tmp_path / "cpu", BuildOptions(gpu="cpu", dtype="bfloat16"))


@pytest.fixture
def machine_with(monkeypatch):
    """machine_with(bytes): from here on the backend finds so much memory available."""
    engine = RUNTIMES["tensorrt"].engine
    assert engine is not None
    bounded = replace(engine, builder="support.tensorrt_stand_in:BoundedBackend")
    monkeypatch.setitem(RUNTIMES, "tensorrt", replace(RUNTIMES["tensorrt"], engine=bounded))

    def bound(available: float) -> None:
        monkeypatch.setattr(BoundedBackend, "available", int(available))

    return bound


@needs_tensorrt
def test_a_model_too_large_for_the_machine_is_compiled_in_stages(int4, tmp_path, machine_with) -> None:
    """Memory for two of the three blocks: two plans, the hidden state handed over."""
    machine_with((PEAK_BASE_BYTES + PEAK_PER_BYTE * 260_000) / 0.9)
    description = build_engine(int4(), tmp_path / "engine", BuildOptions(gpu="a10"))
    assert [stage.layers for stage in description.stages] == [(0, 2), (2, 3)]
    first, second = description.stages
    assert first.outputs[0].name == "hidden_out"
    assert {"hidden_in", "past_key.2"} <= {port.name for port in second.inputs}
    assert {"input_ids", "logits_positions"} & {port.name for port in second.inputs} == {"logits_positions"}


@needs_tensorrt
def test_a_disk_that_is_too_small_is_found_before_work(int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    with pytest.raises(MachineError, match=r"the disk has [\d.]+ (bytes|[kM]B) free"):
        build_engine(int4(), tmp_path / "none", BuildOptions(gpu="a10"))
    assert not (tmp_path / "none").exists()


def test_stages_are_few_consecutive_and_within_bounds() -> None:
    sizes = ModelBytes(embedding=50, blocks=(10,) * 6, head=40, tied=False)
    assert cut_stages(sizes, 1000) == [(0, 6)]
    assert cut_stages(sizes, 80) == [(0, 3), (3, 6)]
    assert sizes.stage((3, 6)) == 70
    assert cut_stages(sizes, 60) == [(0, 1), (1, 5), (5, 6)]
    assert cut_stages(sizes, 55) is None, "the embedding and one block need 60"
    tied = ModelBytes(embedding=50, blocks=(10,) * 6, head=0, tied=True)
    assert tied.stage((3, 6)) == 80, "a tied head is needed again in the last stage"
    assert tied.stage((0, 6)) == 110


def test_a_model_is_compiled_whole_where_it_fits_and_else_in_halves_of_the_memory() -> None:
    """The two cases that were really built, on 24 GiB: DeepSeek-Coder's 6.7B in one plan, its 33B in six."""
    small = ModelBytes(embedding=264_000_000, blocks=(104_000_000,) * 32, head=264_000_000, tied=False)
    assert choose_stages(small, int(22.6e9)) == [(0, 32)]
    assert len(choose_stages(small, int(12e9)) or []) == 3
    large = ModelBytes(embedding=462_000_000, blocks=(274_000_000,) * 62, head=462_000_000, tied=False)
    assert len(choose_stages(large, int(20.6e9)) or []) == 6
    assert choose_stages(large, int(1.5e9)) is None


def test_a_plan_that_widened_its_weights_is_found() -> None:
    sizes = ModelBytes(embedding=10_000_000, blocks=(50_000_000,) * 2, head=10_000_000, tied=False)
    stage = Stage(file="stage0.plan", layers=(0, 2), inputs=(), outputs=(), bytes=130_000_000)
    expected = sizes.stage((0, 2))
    check_plan_sizes([(stage, expected)])
    for wrong in (400_000_000, 151_000_000, 89_000_000, 60_000_000):
        with pytest.raises(MachineError, match=r"stage0.plan: .* for 120 MB"):
            check_plan_sizes([(stage.model_copy(update={"bytes": wrong}), expected)])
    small = stage.model_copy(update={"bytes": 20_000_000})
    check_plan_sizes([(small, 8_000_000)])  # of a small plan the kernels are the most
    with pytest.raises(MachineError):
        check_plan_sizes([(small, 2_000_000)])


def test_what_tensorrt_cannot_take_is_refused_before_work(tiny, tmp_path, run_qtk, write_quantized) -> None:
    overrides = {"model.layers.1.mlp.up_proj": LinearScheme(8, 32, True)}
    model = write_quantized(tiny(), tmp_path / "asym", "gptq", LinearScheme(4, 32, False), overrides)
    done = run_qtk(
        "build-engine", model, "-o", tmp_path / "e", "--gpu", "a10", "--lm-head-bits", "8", "--dtype", "float32"
    )
    assert done.returncode == 2
    for part in ("symmetric weights only", "does not take 8-bit weights", "--lm-head-bits 8", "--dtype float32"):
        assert part in done.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gpu", "h100", "--backend", "tensorrt"), "SM90"),
        (("--gpu", "a10", "--backend", "onnxruntime"), "does not build for a10"),
    ],
)
def test_a_backend_that_is_not_for_the_gpu_is_refused(tiny, tmp_path, run_qtk, words, sentence) -> None:
    done = run_qtk("build-engine", tiny(), "-o", tmp_path / "e", *words)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_without_the_library_nothing_is_written_and_prepare_only_is_named(int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MachineError, match=r"pip install 'tensorrt-rtx-cu13.*--prepare-only"):
        build_engine(int4(), tmp_path / "engine", BuildOptions(gpu="a10"))
    assert list(tmp_path.iterdir()) == []
    description = build_engine(int4(), tmp_path / "engine", BuildOptions(gpu="a10", prepare_only=True))
    assert not description.built
    assert (tmp_path / "engine" / "stage0.onnx").is_file()
    note = read_description(tmp_path / "engine").notes[0]
    assert note.endswith("qtk build-engine engine -o engine-built")
    with pytest.raises(InputError, match=rf"only prepared.*qtk build-engine {tmp_path}/engine -o"):
        DecoderSession.open(tmp_path / "engine")
    with pytest.raises(MachineError, match=r"pip install 'tensorrt-rtx-cu13"):
        build_engine(tmp_path / "engine", tmp_path / "built", BuildOptions())
    assert not (tmp_path / "built").exists()


@needs_tensorrt
def test_the_command_that_is_printed_makes_an_engine_of_what_was_prepared(int4, tmp_path, run_qtk) -> None:
    """The prepared directory alone is enough: the model may be gone. What was chosen then stands."""
    words = ("--gpu", "a10", "--max-input-len", "100", "--max-output-len", "28", "--dtype", "bfloat16")
    prepared = tmp_path / "prepared"
    done = run_qtk("build-engine", int4(), "-o", prepared, *words, "--prepare-only")
    assert done.returncode == 0, done.stderr
    assert "No decoder is faster than" in done.stdout
    for part in ("weights", "cache", "reserve", "needed", "NVIDIA A10"):
        assert part in done.stdout
    assert "Prepared, not built yet" in done.stdout
    assert done.stdout.splitlines()[-1] == f"Next: qtk build-engine {prepared} -o {prepared}-built"
    refused = run_qtk("build-engine", prepared, "-o", tmp_path / "no", "--gpu", "l4", "--max-input-len", "64")
    assert refused.returncode == 2
    assert "--gpu l4 (it was prepared with a10)" in refused.stderr
    assert "--max-input-len 64 (it was prepared with 100)" in refused.stderr
    done = run_qtk("build-engine", prepared, "-o", f"{prepared}-built")
    assert done.returncode == 0, done.stderr
    assert re.search(r"needs about [\d.]+ [MG]B of memory", done.stderr)
    built, before = read_description(Path(f"{prepared}-built")), read_description(prepared)
    assert (built.built, built.limits, built.dtype, built.cache_length) == (True, before.limits, "bfloat16", 128)
    assert [stage.file for stage in built.stages] == ["stage0.plan"]
    assert built.stages[0].inputs[-1].shape[2] == 128, "frozen in the plan"
    assert "tensorrt-rtx-cu13" in built.versions
    files = {path.name for path in Path(f"{prepared}-built").iterdir()}
    assert {"tokenizer.json", "config.json", "stage0.log", "stage0.layers.json", "engine.json"} <= files
    assert not {"stage0.onnx", "stage0.onnx.data"} & files
    manifest = read_manifest(Path(f"{prepared}-built"))
    assert (manifest.kind, manifest.inputs[0].role, manifest.options["gpu"]) == ("engine", "prepared", "a10")
    assert not [finding for finding in verify_chain(Path(f"{prepared}-built")) if finding.bad]
    again = run_qtk("build-engine", f"{prepared}-built", "-o", tmp_path / "no")
    assert (again.returncode, "a built engine already" in again.stderr) == (2, True)


def test_full_tensorrt_needs_its_library(tiny, tmp_path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("full TensorRT is installed")
    with pytest.raises(MachineError, match="tensorrt-full"):
        build_engine(tiny(), tmp_path / "engine", BuildOptions(gpu="h100", backend="tensorrt-full"))


@needs_tensorrt
def test_a_refusal_of_the_parser_comes_with_its_reasons(int4, tmp_path) -> None:
    """The cache left symbolic is what TensorRT refuses: its sentence must reach the user, and the log stay."""
    from qtk.engines.onnx.decoder import GraphOptions, write_graph

    graph = write_graph(ModelWeights.open(int4()), tmp_path, GraphOptions(torch.float16, 64))
    single = (1, 1, 1)
    request = CompileRequest(
        library="tensorrt_rtx",
        graph=graph,
        plan=tmp_path / "p.plan",
        layers=tmp_path / "l.json",
        compute_capability="8.6",
        frozen={},
        ranges={"batch": single, "tokens": single, "wanted": single, "cache": single},
    )
    with pytest.raises(InputError, match=r"(?s)could not compile model\.onnx.*static sequence length"):
        run_compiler(request)
    assert not (tmp_path / "p.plan").exists()


@pytest.fixture
def request_of(tmp_path):
    """request_of("x"): a request to compile with the library x inside engine.partial, a directory that is being written."""
    directory = tmp_path / "engine.partial"
    directory.mkdir()

    def make(library: str) -> CompileRequest:
        paths = {name: directory / f"stage0.{name}" for name in ("graph", "plan", "layers")}
        return CompileRequest(library=library, compute_capability="8.6", frozen={}, ranges={}, **paths)

    return make


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("kill -9 $$", "most likely because memory ran out"),
        ("echo Segmentation fault >&2; kill -11 $$", r"crashed \(SIGSEGV\)[\s\S]*Segmentation"),
        ('echo "what():  std::bad_alloc" >&2; kill -6 $$', r"memory ran out[\s\S]*engine\.stage0\.log"),
    ],
    ids=["killed", "crashed", "out of memory"],
)
def test_the_end_of_a_compiler_is_explained(request_of, tmp_path, monkeypatch, ending: str, words: str) -> None:
    """A stand-in interpreter that ends as the kernel, a bug and the C++ runtime end it."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{ending}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(MachineError, match=words):
        run_compiler(request_of("x"))
    assert (tmp_path / "engine.stage0.log").is_file(), "beside the directory that disappears"


def test_a_stop_ends_everything_that_the_compiler_started(request_of, tmp_path, monkeypatch) -> None:
    """The stand-in starts a child that would live on; the stop comes with its first line."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/child\necho "{{}}"\nwait\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        run_compiler(request_of("x"))
    child = int((tmp_path / "child").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)  # a child that lives on runs into the test's time limit


def test_a_library_that_does_not_load_is_the_machine_s_fault(request_of) -> None:
    with pytest.raises(MachineError, match="no_such_library cannot be imported"):
        run_compiler(request_of("no_such_library"))


def test_without_the_memory_the_command_ends_with_4_and_the_amount(
    int4, tmp_path, monkeypatch, machine_with, run_qtk
) -> None:
    machine_with(PEAK_BASE_BYTES + 1000)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module_of("tensorrt_rtx"))
    done = run_qtk("build-engine", int4(), "-o", tmp_path / "engine", "--gpu", "a10")
    assert done.returncode == 4
    assert "needs about 600 MB of memory even block by block, and 600 MB are available" in done.stderr
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
@needs_tensorrt
def test_smollm2_for_an_a10(smollm2, tmp_path, write_quantized) -> None:
    int4 = write_quantized(smollm2, tmp_path / "int4", "gptq", LinearScheme(4, 64, True))
    description = build_engine(int4, tmp_path / "engine", BuildOptions(gpu="a10"))
    weights = ModelWeights.open(int4)
    sizes = model_bytes(weights.spec, weights.scheme)
    expected = sizes.stage((0, weights.spec.num_layers)) + table_bytes(weights.spec, 1536)
    assert 0.75 * expected < description.stages[0].bytes < 1.25 * expected
