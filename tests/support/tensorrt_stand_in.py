"""Stand-ins of TensorRT and of CUDA whose device is this machine's memory, and a backend that compiles for them.

The stand-in of a plan runs the stage's ONNX graph on the memory at the addresses that it was bound to, with every output
spoilt first: a buffer that is missing, too small, shared or not handed on shows in the numbers.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from qtk.engines.onnxruntime.executor import session_options
from qtk.engines.tensorrt.backend import TensorRtBackend
from qtk.engines.tensorrt.worker import CompileRequest, frozen_model
from qtk.targets.runtimes import Runtime

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


def frozen_graph(request: CompileRequest, environment: Mapping[str, str]) -> dict[str, object]:
    """Compiles for the stand-ins: the plan is the frozen ONNX graph with its weights."""
    model = frozen_model(request.graph, request.frozen)
    onnx.load_external_data_for_model(model, str(request.graph.parent))
    request.plan.write_bytes(model.SerializeToString())
    return {"version": VERSION}


class StandInBackend(TensorRtBackend):
    """The backend with the stand-in compiler and the stages that a test sets."""

    stages: ClassVar[list[tuple[int, int]]] = THREE

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, compiler=frozen_graph, choose=lambda sizes, available: self.stages)


class BoundedBackend(TensorRtBackend):
    """The backend with its real compiler, on a machine with the memory that a test sets."""

    available: ClassVar[int] = 1 << 40

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, memory=lambda: self.available)
