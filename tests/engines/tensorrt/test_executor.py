"""The layer that owns device buffers, against stand-ins of TensorRT and of CUDA whose device is this machine's memory.

The stand-in of a plan runs the stage's ONNX graph on what lies at the addresses that it was bound to, with every output
spoilt first: so a buffer that is missing, too small, shared or not handed on shows in the numbers. What only a GPU can
show (kernels, streams, graphs) is what `qtk accept` is for.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from support.quantized_checkpoint import write_quantized

from qtk.engines.build import build_engine
from qtk.engines.onnxruntime.executor import session_options
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.engines.tensorrt import backend as tensorrt_backend
from qtk.engines.tensorrt import executor as tensorrt_executor
from qtk.engines.tensorrt.compile import CompileRequest, frozen_model
from qtk.errors import InputError, MachineError
from qtk.quantization.scheme_model import LinearScheme
from qtk.release.accept import AcceptOptions, accept

TYPES = {
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    onnx.TensorProto.INT64: np.dtype(np.int64),
    onnx.TensorProto.BOOL: np.dtype(np.bool_),
}
VERSION = "1.7.1"
THREE = [(0, 1), (1, 2), (2, 3)]


def module_of(name: str, **content: Any) -> types.ModuleType:
    """A module of this content, with the spec that others look for."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(content)
    return module


class Device:
    """The memory of the stand-in GPU, and what was done with it."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.capabilities = [(8, 9), (8, 6)]
        self.chosen: list[int] = []
        self.freed = 0

    def at(self, address: int, count: int) -> np.ndarray:
        """`count` bytes at `address`, which must lie within one block."""
        for start, block in self.blocks.items():
            if start <= address and address + count <= start + len(block):
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address} are not allocated")

    def module(self) -> types.ModuleType:
        """cuda.bindings.runtime, as far as it is used."""
        error = enum.IntEnum("error", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})
        ok = (error.cudaSuccess,)
        kinds = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        attributes = types.SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)

        def malloc(count: int) -> tuple:
            if count > 1 << 34:
                return (error.cudaErrorMemoryAllocation, None)
            block = np.full(count, 0xAA, np.uint8)
            self.blocks[block.ctypes.data] = block
            return (*ok, block.ctypes.data)

        def copy(to: int, source: int, count: int, kind: int, stream: int) -> tuple:
            self.at(to if kind == kinds.cudaMemcpyHostToDevice else source, count)
            ctypes.memmove(to, source, count)
            return ok

        def fill(address: int, value: int, count: int, stream: int) -> tuple:
            self.at(address, count)[:] = value
            return ok

        def free(address: int) -> tuple:
            del self.blocks[address]
            self.freed += 1
            return ok

        return module_of(
            "cuda.bindings.runtime",
            cudaMemcpyKind=kinds,
            cudaDeviceAttr=attributes,
            cudaGetDeviceCount=lambda: (*ok, len(self.capabilities)),
            cudaDeviceGetAttribute=lambda kind, device: (*ok, self.capabilities[device][kind]),
            cudaSetDevice=lambda device: self.chosen.append(device) or ok,
            cudaStreamCreate=lambda: (*ok, 7),
            cudaStreamDestroy=lambda stream: ok,
            cudaStreamSynchronize=lambda stream: ok,
            cudaMalloc=malloc,
            cudaMemGetInfo=lambda: (*ok, (1 << 33) - sum(map(len, self.blocks.values())), 1 << 33),
            cudaMemcpyAsync=copy,
            cudaMemsetAsync=fill,
            cudaFree=free,
        )


class Context:
    """An execution context: the stage's graph, run on the memory that its ports are bound to."""

    def __init__(self, plan: Plan, memory: str) -> None:
        self.plan, self.memory = plan, memory
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.workspace: tuple[int, int] | None = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.plan.ports

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return not self.plan.refuses_shapes

    def set_device_memory(self, address: int, size: int) -> None:
        self.workspace = (address, size)

    def array(self, name: str, sizes: dict[str, int]) -> np.ndarray:
        """What a port is bound to, as an array that shares that memory."""
        dtype, dims = self.plan.ports[name]
        shape = [sizes[d] if isinstance(d, str) else d for d in dims]
        raw = self.plan.device.at(self.addresses[name], math.prod(shape) * dtype.itemsize)
        return raw.view(dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        plan, sizes = self.plan, {}
        for name in plan.inputs:
            sizes |= {d: n for d, n in zip(plan.ports[name][1], self.shapes[name], strict=True) if isinstance(d, str)}
        if self.memory == "USER_MANAGED":
            assert self.workspace is not None
            assert self.workspace[1] >= plan.device_memory_size_v2
            plan.device.at(*self.workspace)[:] = 0xFF
        kept = {name: self.addresses[name] for name in plan.inputs if name.startswith("past_")}
        for name in plan.outputs:
            if name.startswith("present_"):
                assert self.addresses[name] == kept[name.replace("present_", "past_")], "the cache is updated in place"
            else:
                self.array(name, sizes).view(np.uint8)[:] = 0xFF  # as a kernel that writes before it has read all
        values = {name: self.array(name, sizes).copy() for name in plan.inputs}
        for name, value in zip(plan.outputs, plan.run(values), strict=True):
            self.array(name, sizes)[:] = value
        return plan.runs


class Plan:
    """An engine: the stage's graph as ONNX, by ONNX Runtime, or by onnx.reference where that lacks bfloat16."""

    runs = True
    refuses_shapes = False
    makes_contexts = True
    device_memory_size_v2 = 512

    def __init__(self, content: bytes, device: Device) -> None:
        self.device = device
        graph = (model := onnx.load_from_string(content)).graph
        self.ports = {
            value.name: (
                TYPES[value.type.tensor_type.elem_type],
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in (*graph.input, *graph.output)
        }
        self.inputs, self.outputs = [i.name for i in graph.input], [o.name for o in graph.output]
        if np.dtype(ml_dtypes.bfloat16) in {dtype for dtype, _ in self.ports.values()}:
            evaluator = ReferenceEvaluator(model)
            self.run: Callable[[dict], Any] = lambda values: evaluator.run(self.outputs, values)
        else:
            session = ort.InferenceSession(content, session_options(1, 0))
            self.run = lambda values: session.run(self.outputs, values)

    def context(self, memory: str) -> Context | None:
        return Context(self, memory) if self.makes_contexts else None


class Cache:
    """TensorRT-RTX's runtime cache: takes back what it wrote, and nothing else."""

    def deserialize(self, content: bytes) -> bool:
        return content == b"kernels of this driver"

    def serialize(self) -> bytes:
        return b"kernels of this driver"


class Config:
    """The configuration of a context, as far as both libraries have it."""

    memory = "STATIC"

    def set_execution_context_allocation_strategy(self, memory: str) -> None:
        self.memory = memory


class RtxConfig(Config):
    """What TensorRT-RTX alone has."""

    cuda_graph_strategy = None
    cache: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> None:
        self.cache = cache


def tensorrt(device: Device, config: type[Config]) -> types.ModuleType:
    """The module of one of the two libraries."""

    class RealPlan(Plan):
        def create_runtime_config(self) -> Config:
            return config()

        def create_execution_context(self, given: Config) -> Context | None:
            return self.context(given.memory)

    class Logger:
        WARNING = 2

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class Runtime:
        def __init__(self, log: Logger) -> None:
            log.log(3, "this is only information")
            log.log(2, "a driver is old")

        def deserialize_cuda_engine(self, content: bytes) -> Plan | None:
            return None if content == b"damaged" else RealPlan(content, device)

    strategies = types.SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED")
    return module_of(
        "tensorrt_rtx",
        __version__=VERSION,
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=strategies,
        CudaGraphStrategy=types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
    )


@pytest.fixture
def device(tiny, monkeypatch, pretend_gpu) -> Device:
    """A machine with an L4 and an A10, TensorRT-RTX and CUDA, all stand-ins."""
    for variant in ("llama", "mistral-window", "qwen3"):
        tiny(variant)  # made by transformers, which looks at what is installed
    made = Device()
    pretend_gpu("8.6")
    monkeypatch.setitem(sys.modules, "cuda", module_of("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", module_of("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made.module())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt(made, RtxConfig))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(made, Config))
    return made


@pytest.fixture
def plans(tiny, tmp_path, monkeypatch):
    """plans("llama", stages=THREE) -> an engine directory whose plans are what the stand-ins load: frozen ONNX graphs."""

    def compiled(request: CompileRequest, log: Path, environment: object) -> dict[str, object]:
        model = frozen_model(request.graph, request.frozen)
        onnx.load_external_data_for_model(model, str(request.graph.parent))
        request.plan.write_bytes(model.SerializeToString())
        return {"version": VERSION}

    def make(variant: str = "llama", stages: list[tuple[int, int]] = THREE, **options: Any) -> Path:
        monkeypatch.setattr(tensorrt_backend, "run_compiler", compiled)
        monkeypatch.setattr(tensorrt_backend, "choose_stages", lambda *sizes: stages)
        group = 64 if options.get("backend") == "tensorrt-full" else 32
        model = write_quantized(tiny(variant), tmp_path / f"q-{variant}", "gptq", LinearScheme(4, group, True))
        settings = {"gpu": "a10", "max_input_len": 48, "max_output_len": 16, "max_batch_size": 2, **options}
        build_engine(model, tmp_path / variant, BuildOptions(**settings))
        return tmp_path / variant

    return make


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
            made = session.generate(rows, 12, ignore_eos=True).tokens
            assert made == expected.generate(rows, 12, ignore_eos=True).tokens
        assert made[0] == session.generate([rows[0]], 12, ignore_eos=True).tokens[0]
        blocks = len(device.blocks)
    # Four whole-number inputs, the mask, the logits, keys and values of three blocks; between stages two hidden states by
    # turns and one workspace.
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
        session.generate([prompt(5)], 3, ignore_eos=True)
        assert cache.read_bytes() == b"kernels of this driver"
        cache.unlink()
    assert cache.is_file(), "kept at the end too, with all that came later"
    with DecoderSession.open(engine) as session:
        assert session.compiled_before is True
    cache.write_bytes(b"kernels of another driver")
    with DecoderSession.open(engine) as session:
        assert session.compiled_before is False
    assert cache.read_bytes() == b"kernels of this driver"
    assert "is made anew" in capsys.readouterr().err
    cache.unlink()
    cache.mkdir()
    with DecoderSession.open(engine) as session:
        session.generate([prompt(5)], 3, ignore_eos=True)
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
    assert "with the compiling of its kernels" in record.latency.first_call


def test_messages_go_to_stderr(plans, device, capsys) -> None:
    DecoderSession.open(plans()).close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "TensorRT: a driver is old" in said.err
    assert "only information" not in said.err


def test_full_tensorrt_has_no_such_cache(tiny, plans, device, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("qtk.engines.linear_plans._has_negative_scale", lambda *linear: False)
    with DecoderSession.open(plans(backend="tensorrt-full")) as session:
        assert session.compiled_before is None
        assert len(session.generate([prompt(5)], 3, ignore_eos=True).tokens[0]) == 3
    assert not (tmp_path / "llama.runtime-cache").exists()


def test_what_fails_is_a_sentence(plans, device, tmp_path, monkeypatch) -> None:
    engine = plans()
    whole = (engine / "stage1.plan").read_bytes()
    (engine / "stage1.plan").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"stage1\.plan: TensorRT cannot load"):
        DecoderSession.open(engine)
    (engine / "stage1.plan").write_bytes(whole)
    for name, value, words in (
        ("makes_contexts", False, r"could not make a context of stage0\.plan"),
        ("refuses_shapes", True, r"could not take input_ids \[1, 5\] in stage0\.plan"),
        ("runs", False, r"could not run stage0\.plan"),
    ):
        with monkeypatch.context() as patch, pytest.raises(MachineError, match=words):
            patch.setattr(Plan, name, value)
            DecoderSession.open(engine).generate([prompt(5)], 2)
    with (
        monkeypatch.context() as patch,
        pytest.raises(MachineError, match="cudaMalloc failed: cudaErrorMemoryAllocation"),
    ):
        patch.setattr(Plan, "device_memory_size_v2", 1 << 40)
        DecoderSession.open(engine)
    device.capabilities = [(8, 9)]
    with pytest.raises(MachineError, match=r"needs a GPU of SM 8\.6; CUDA sees 8\.9"):
        DecoderSession.open(engine)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MachineError, match="cuda-python is not installed"):
        DecoderSession.open(engine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MachineError, match=r"found here: none \(CUDA_VISIBLE_DEVICES hides others\)"):
        DecoderSession.open(engine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    sys.modules["tensorrt_rtx"].__version__ = "1.8.0"  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"compiled by tensorrt-rtx-cu13 1\.7\.1, here is 1\.8\.0"):
        DecoderSession.open(engine)


def test_the_layer_that_cannot_run_here_stays_thin() -> None:
    assert len(Path(tensorrt_executor.__file__).read_text().splitlines()) < 200
