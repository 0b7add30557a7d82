"""The plans on a GPU. UNTESTED on hardware: no GPU was there when this was written; `qtk accept` turns that into a record.

Owns device buffers and nothing else: what goes into them is decided by session.py, which is tested with ONNX Runtime.
Every buffer is allocated once at its largest; a cache input and its output are one address, as TensorRT requires; the
hidden state goes from stage to stage on the device.
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
from qtk.engines.executor import Step
from qtk.engines.target_machine import gpu_reasons, library_reasons
from qtk.engines.tensorrt_backend import FULL, RTX, SCORED_POSITIONS
from qtk.errors import InputError, MachineError, listing
from qtk.machine import package_versions

_LIBRARIES = {library.backend: library for library in (RTX, FULL)}
_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64, "bool": np.bool_}


def require_gpu(directory: Path, description: EngineDescription) -> None:
    """MachineError, with every reason, unless this machine can run the plans: GPU, its SM, library and its version."""
    library = _LIBRARIES[description.backend]
    needed = description.versions.get(library.distribution)
    present = package_versions(library.distribution).get(library.distribution)
    reasons = gpu_reasons(description) + library_reasons(library.distribution, present, needed, library.install)
    if reasons:
        raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")


class Cuda:
    """The few calls of the CUDA runtime that are needed, each raising MachineError where it fails."""

    def __init__(self) -> None:
        try:
            self.api = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise MachineError("cuda-python is not installed: pip install 'qtk[tensorrt]'.") from None
        self.stream = self.call("cudaStreamCreate")

    def call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self.api, name)(*arguments)
        if int(status):
            raise MachineError(f"{name} failed: {status.name}.")
        return results[0] if results else None

    def zeros(self, count: int) -> int:
        """Address of `count` zeroed bytes on the device. Zeros, since a masked slot is multiplied by 0 and 0 x NaN is NaN."""
        address = self.call("cudaMalloc", count)
        self.call("cudaMemsetAsync", address, 0, count, self.stream)
        return int(address)

    def upload(self, address: int, array: np.ndarray) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)


class TensorRtExecutor:
    """An executor (see executor.py) over one plan a pipeline stage."""

    def __init__(
        self, directory: Path, description: EngineDescription, threads: int | None, accuracy_level: int | None
    ) -> None:
        require_gpu(directory, description)
        limits = description.limits
        self.chunk_tokens = limits.max_input_len
        self.chunk_logits = min(SCORED_POSITIONS, limits.max_input_len)
        assert description.cache_length is not None
        self._description, self._length = description, description.cache_length
        self._trt = importlib.import_module(_LIBRARIES[description.backend].module)
        self._cuda = Cuda()
        self._most = {"batch": limits.max_batch, "tokens": limits.max_input_len, "wanted": self.chunk_logits}
        # Kept beside the engine and not in it: the directory's manifest knows every file that belongs there.
        self._cache_file = directory.parent / f"{directory.name}.runtime-cache"
        self._runtime_cache: Any = None
        self._addresses: dict[str, int] = {}
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.WARNING))
        self._plans = [
            self._runtime.deserialize_cuda_engine((directory / s.file).read_bytes()) for s in description.stages
        ]
        if None in self._plans:
            raise InputError(f"{directory}: TensorRT cannot load a plan; `qtk verify` says whether it was damaged.")
        self._contexts = [self._context(plan) for plan in self._plans]
        self._allocate()

    def _context(self, plan: Any) -> Any:
        """TensorRT-RTX compiles kernels at first use: keep them in a cache file, and capture the decode step as a graph."""
        if not hasattr(plan, "create_runtime_config"):
            return plan.create_execution_context()
        config = plan.create_runtime_config()
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
            if self._cache_file.is_file():
                self._runtime_cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._runtime_cache)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return plan.create_execution_context(config)

    def _allocate(self) -> None:
        """One buffer a name; a cache's output shares its input's, a stage's hidden_in the hidden_out before it."""
        for stage in self._description.stages:
            for port in (*stage.inputs, *stage.outputs):
                name = buffer_name(port)
                if name not in self._addresses:
                    shape = [self._most[d] if isinstance(d, str) else d for d in port.shape]
                    size = math.prod(shape) * np.dtype(_TYPES[port.dtype]).itemsize
                    self._addresses[name] = self._cuda.zeros(size)
        for stage, context in zip(self._description.stages, self._contexts, strict=True):
            for port in (*stage.inputs, *stage.outputs):
                context.set_tensor_address(port.name, self._addresses[buffer_name(port)])

    def start(self, batch: int) -> None:
        # Stale slots need no wiping: a slot is written before any mask lets a token look at it.
        self._batch = batch

    def reserve(self, positions: int) -> int:
        return self._length

    def keep_rows(self, rows: Sequence[int]) -> bool:
        return False  # a GPU decodes a few rows too many as fast as without them

    def run(self, step: Step) -> np.ndarray:
        values: dict[str, np.ndarray] = {
            "input_ids": step.input_ids,
            "position_ids": step.position_ids,
            "write_indices": step.write_indices,
            "logits_positions": step.logits_positions,
            **step.masks,
        }
        values = {name: np.ascontiguousarray(array) for name, array in values.items()}
        for name, array in values.items():
            self._cuda.upload(self._addresses[name], array)
        batch, tokens = step.input_ids.shape
        sizes = {"batch": batch, "tokens": tokens, "wanted": step.logits_positions.shape[1]}
        for stage, context in zip(self._description.stages, self._contexts, strict=True):
            for port in stage.inputs:
                context.set_input_shape(port.name, tuple(sizes[d] if isinstance(d, str) else d for d in port.shape))
            if not context.execute_async_v3(int(self._cuda.stream)):
                raise MachineError(f"TensorRT could not run {stage.file}; its messages are above.")
        logits = np.empty((batch, sizes["wanted"], self._description.vocab_size), _TYPES[self._description.dtype])
        self._cuda.download(logits, self._addresses["logits"])
        self._cuda.wait()
        if self._runtime_cache is not None and not self._cache_file.is_file():
            self._cache_file.write_bytes(self._runtime_cache.serialize())
        return logits.astype(np.float32)


def buffer_name(port: Port) -> str:
    """The buffer that a port of the graph uses."""
    return port.name.replace("present_", "past_").replace("hidden_out", "hidden_in")
