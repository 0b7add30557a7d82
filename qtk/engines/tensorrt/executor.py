"""Runs the plans on a GPU. UNTESTED on hardware: there was no GPU when this was written; `qtk accept` tests it and keeps a
record.

Owns device buffers and nothing else: sessions/session.py, which is tested with ONNX Runtime, decides what goes into them.
Every buffer is allocated once at its largest size. A cache input and its output are one address, as TensorRT requires. The
hidden state goes from stage to stage on the device, alternating between two buffers. All stages share one workspace.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qtk.engines.description import EngineDescription, Port
from qtk.engines.sessions.executor import Forward
from qtk.engines.tensorrt.library import SCORED_POSITIONS, require_library, stderr_log, succeeded
from qtk.engines.tensorrt.runtime_cache import RuntimeCache
from qtk.errors import InputError, MachineError
from qtk.install_hints import missing_package

_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64, "bool": np.bool_}


class Cuda:
    """The few calls of the CUDA runtime that are needed, on one device. Each raises MachineError where it fails."""

    def __init__(self, compute_capability: str | None) -> None:
        try:
            self.api = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise missing_package("Running the engine", "cuda-python", "tensorrt") from None
        self._addresses: list[int] = []
        self.call("cudaSetDevice", self._device(compute_capability))
        self.stream = self.call("cudaStreamCreate")

    def call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self.api, name)(*arguments)
        if int(status):
            raise MachineError(f"{name} failed: {status.name}.")
        return results[0] if results else None

    def _device(self, compute_capability: str | None) -> int:
        """The first device of this SM. CUDA numbers only what CUDA_VISIBLE_DEVICES leaves."""
        kinds = self.api.cudaDeviceAttr
        which = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        present = []
        for device in range(self.call("cudaGetDeviceCount")):
            present.append(".".join(str(self.call("cudaDeviceGetAttribute", kind, device)) for kind in which))
            if present[-1] == compute_capability:
                return device
        raise MachineError(
            f"The engine needs a GPU of SM {compute_capability}; CUDA sees {', '.join(present) or 'none'}."
        )

    def zeros(self, count: int) -> int:
        """Address of `count` zeroed bytes on the device. Zeros, since a masked slot is multiplied by 0 and 0 x NaN is NaN."""
        address = int(self.call("cudaMalloc", count))
        self._addresses.append(address)
        self.call("cudaMemsetAsync", address, 0, count, self.stream)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        while self._addresses:
            self.call("cudaFree", self._addresses.pop())
        self.call("cudaStreamDestroy", self.stream)


class TensorRtExecutor:
    """An executor (see sessions/executor.py) with one plan for each pipeline stage."""

    def __init__(self, directory: Path, description: EngineDescription, threads: int | None) -> None:
        """`threads` is not used: the processor only waits."""
        self._trt = require_library(directory, description)
        limits = description.limits
        self.chunk_tokens = limits.max_input_len
        self.chunk_logits = min(SCORED_POSITIONS, limits.max_input_len)
        assert description.cache_length is not None
        self._description, self._length = description, description.cache_length
        self._most = {"batch": limits.max_batch, "tokens": limits.max_input_len, "wanted": self.chunk_logits}
        self._cuda: Cuda | None = Cuda(description.compute_capability)
        self._free = int(self._cuda.call("cudaMemGetInfo"))
        self._cache = RuntimeCache(directory)
        self._decoded = False
        self._log = stderr_log(self._trt)
        self._runtime = succeeded(self._trt.Runtime(self._log), "start its runtime")
        self._plans = [self._plan(directory / stage.file) for stage in description.stages]
        self._contexts = [
            self._context(plan, stage.file) for plan, stage in zip(self._plans, description.stages, strict=True)
        ]
        self._addresses = self._allocate(self._cuda)

    @property
    def compiled_before(self) -> bool | None:
        return self._cache.found

    def _plan(self, path: Path) -> Any:
        plan = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if plan is None:
            raise InputError(f"{path}: TensorRT cannot load this plan; `qtk verify` says whether it was damaged.")
        return plan

    def _context(self, plan: Any, name: str) -> Any:
        """TensorRT-RTX compiles kernels at first use: they are kept, and the decode step is captured as a CUDA graph."""
        strategy = self._trt.ExecutionContextAllocationStrategy
        # Stages run one after the other, so they can share one workspace; a single plan may keep its own.
        memory = strategy.USER_MANAGED if len(self._plans) > 1 else strategy.STATIC
        if not hasattr(plan, "create_runtime_config"):
            return succeeded(plan.create_execution_context(memory), f"make a context of {name}")
        config = plan.create_runtime_config()
        config.set_execution_context_allocation_strategy(memory)
        if hasattr(config, "create_runtime_cache"):  # full TensorRT has a config too, but neither of these
            config.set_runtime_cache(self._cache.of(config))
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return succeeded(plan.create_execution_context(config), f"make a context of {name}")

    def _allocate(self, cuda: Cuda) -> dict[str, int]:
        """Name -> address of one buffer a name (see `buffer_name`), which the contexts are given."""
        addresses: dict[str, int] = {}
        for number, (stage, context) in enumerate(zip(self._description.stages, self._contexts, strict=True)):
            for port in (*stage.inputs, *stage.outputs):
                name = buffer_name(port, number)
                if name not in addresses:
                    shape = [self._most[d] if isinstance(d, str) else d for d in port.shape]
                    addresses[name] = cuda.zeros(math.prod(shape) * np.dtype(_TYPES[port.dtype]).itemsize)
                succeeded(context.set_tensor_address(port.name, addresses[name]), f"bind {port.name} of {stage.file}")
        if len(self._contexts) > 1:
            size = max(1, *(plan.device_memory_size_v2 for plan in self._plans))
            addresses["workspace"] = cuda.zeros(size)
            for context in self._contexts:
                context.set_device_memory(addresses["workspace"], size)
        return addresses

    def memory_bytes(self) -> int | None:
        return None if self._cuda is None else self._free - int(self._cuda.call("cudaMemGetInfo"))

    def start(self, batch: int) -> None:
        pass  # stale slots need no wiping: a slot is written before any mask lets a token look at it

    def reserve(self, positions: int) -> int:
        return self._length

    def keep_rows(self, rows: Sequence[int]) -> bool:
        return False  # a GPU decodes a few superfluous rows as fast as it would decode without them

    def run(self, forward: Forward) -> np.ndarray:
        cuda = self._cuda
        assert cuda is not None
        values = {name: np.ascontiguousarray(array) for name, array in forward.inputs().items()}
        for name, array in values.items():
            cuda.upload(self._addresses[name], array)
        batch, tokens = forward.input_ids.shape
        sizes = {"batch": batch, "tokens": tokens, "wanted": forward.logits_positions.shape[1]}
        for stage, context in zip(self._description.stages, self._contexts, strict=True):
            for port in stage.inputs:
                shape = tuple(sizes[d] if isinstance(d, str) else d for d in port.shape)
                succeeded(context.set_input_shape(port.name, shape), f"take {port.name} {list(shape)} in {stage.file}")
            succeeded(context.execute_async_v3(int(cuda.stream)), f"run {stage.file}")
        logits = np.empty((batch, sizes["wanted"], self._description.vocab_size), _TYPES[self._description.dtype])
        cuda.download(logits, self._addresses["logits"])
        cuda.wait()
        if tokens == 1 and not self._decoded:  # by now both kinds of step have been compiled
            self._decoded = True
            self._cache.save()
        return logits.astype(np.float32)

    def close(self) -> None:
        if self._cuda is not None:
            cuda, self._cuda = self._cuda, None
            cuda.wait()
            self._cache.save()
            self._contexts, self._plans, self._runtime = [], [], None
            cuda.close()


def buffer_name(port: Port, stage: int) -> str:
    """The buffer of a port of stage `stage`. A cache's output shares the buffer of its input. Hidden states alternate between
    two buffers, since a stage in the middle must not write what it still reads."""
    hidden = {"hidden_in": f"hidden {(stage - 1) % 2}", "hidden_out": f"hidden {stage % 2}"}
    return hidden.get(port.name, port.name.replace("present_", "past_"))
