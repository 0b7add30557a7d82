"""How long a step takes on this machine, in how much memory and disk, before it is begun.

Bytes follow from the shapes. Times follow from counted products and bytes, and from how fast this machine is just now: a
product of matrices, the rounding of a small matrix, reading memory, a sha256, a write to the disk and the start of a process are timed,
which takes some seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from qtk.engines.memory import model_bytes
from qtk.engines.own_python import own_paths, own_python
from qtk.errors import MachineError
from qtk.machine import fast_matmul_dtype, limit_threads, total_memory, unhindered_threads
from qtk.models.spec import ModelSpec
from qtk.peak_memory import resident_bytes
from qtk.quantization.memory_need import MemoryNeed, Work, activation_bytes, memory_need, text_bytes
from qtk.quantization.products import block_products
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme, float_scheme
from qtk.sizes import size_text

_STORED_BYTES = 2  # of a float weight: bfloat16 or float16
_FLOAT_BYTES = 4
_PRODUCTS = 12  # that are timed
_SAMPLE = 2048, 1024  # rows and columns of the weight whose rounding is timed
# What else is done to a weight, in the seconds that the sample takes for one:
_BESIDE_ROUNDING = 1.7  # that itself, conversions, the log's errors
_HEAD = 0.67  # of embedding and head in an engine: rounded to whole numbers, in one thread
# Seconds a weight, on one core of the kind that docs/benchmarks.md names:
_MERGING_SECONDS = 7.0e-9  # to float32, back, looked through for NaN, and copied from and to the system
_PACKING_SECONDS = 1.2e-8  # of a block in an engine: codes taken apart, turned, and put together
_TEXT_TOKENS = 32  # each reads the whole model
_NO_LIMIT = 1 << 60  # a prediction is given even where the memory is not free just now
_SLICES = 10 * 8 << 20  # of a merge
_SHARE_OF_DISK = 8  # a write is timed with four pieces of at most this part of what is free, so with half of it at most
_SMALLEST_PIECE = 1 << 18
_SHARE_OF_ROWS = {"fast": 0.25, "default": 0.5, "best": 1.0}
_TUNING = 10  # times as long as without: what effort best says of itself


class Rates(BaseModel):
    """How fast this machine is: multiply-adds a second with all threads, in float32 and, as `forward`, in the dtype in which blocks
    are computed, of `itemsize` bytes; seconds a weight of GPTQ beside its products; bytes a second of sha256 on one core, of writes
    that reach the disk, and of a large matrix that is read from memory for one product with a vector; seconds in which a process of
    Python comes to its work."""

    products: float
    forward: float
    itemsize: int
    rounding: float
    digest: float
    disk: float
    memory: float
    start: float
    threads: int


class StepForecast(BaseModel):
    """What one step takes. Bytes; seconds. memory: at its peak; scratch: on the disk while it runs, removed at its end."""

    step: str
    seconds: float
    memory: int
    written: int
    scratch: int


@dataclass(frozen=True)
class ModelSize:
    """A float model and its quantized form. weights: of the linears in the blocks; bytes of both checkpoints."""

    spec: ModelSpec
    weights: int
    float_bytes: int
    quantized_bytes: int

    @staticmethod
    def of(spec: ModelSpec, scheme: QuantizationScheme | None = None) -> ModelSize:
        """scheme: how the linears are stored; None: at INT4 in the largest group that divides them all."""
        linears = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
        if scheme is None:
            group = next((size for size in (128, 64, 32) if all(n % size == 0 for _, n in linears.values())), 32)
            stored = LinearScheme(4, group, True)
            scheme = QuantizationScheme(stored, {**float_scheme(spec).modules, **dict.fromkeys(linears, stored)})
        weights = sum(rows * columns for rows, columns in linears.values())
        return ModelSize(spec, weights, _STORED_BYTES * spec.parameters(), model_bytes(spec, scheme).total)


@dataclass(frozen=True)
class QuantizationWork:
    """What decides the time and memory of a quantization. memory: GB that it may take (None: what it needs)."""

    method: str
    effort: str
    samples: int
    seq_len: int
    memory: float | None = None

    def tokens(self, spec: ModelSpec) -> int:
        """How many calibration tokens the effort reads."""
        if self.method == "rtn":
            return 0
        offered = self.samples * self.seq_len
        widest = max(linear.in_features for linear in spec.linears())
        return min(offered, max(round(_SHARE_OF_ROWS[self.effort] * offered), 3 * widest))

    def memory_need(self, spec: ModelSpec, itemsize: int = _FLOAT_BYTES) -> MemoryNeed:
        """As counted before the work begins. itemsize: bytes of a value in products, at most four."""
        work = Work(self.method, self.effort, self.tokens(spec), self.seq_len, itemsize, _STORED_BYTES)
        return memory_need(spec, float_scheme(spec), work, resident_bytes())


def measured_rates(place: Path) -> Rates:
    """Times this machine as it is now, with a file of 256 MB in `place` that has no name and is gone at once; a smaller one where
    the disk is nearly full, and MachineError where it is full."""
    import torch

    threads = limit_threads(unhindered_threads(None).threads)
    size = 1536
    a = torch.ones(size, size)
    product = forward = _sustained_seconds(lambda: a @ a)
    dtype = fast_matmul_dtype()
    if dtype != a.dtype:
        b = a.to(dtype)
        forward = _sustained_seconds(lambda: b @ b)
    large, vector = torch.ones(16 * size, size), torch.ones(size)  # 151 MB: larger than a cache
    read = min(_seconds(lambda: large @ vector) for _ in range(4))
    data = bytes(1 << 26)
    digest = min(_seconds(lambda: hashlib.sha256(data).digest()) for _ in range(2))
    free = shutil.disk_usage(place).free
    piece = data[: free // _SHARE_OF_DISK]
    if len(piece) < _SMALLEST_PIECE:
        raise MachineError(
            f"{place}: the disk has {size_text(free)} free, too little to time a write. Free some room, or choose another disk "
            "for the results."
        )

    def write() -> None:
        with tempfile.TemporaryFile(dir=place) as file:
            for _ in range(4):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    disk = _seconds(write)
    start, rounding = _start_and_rounding(threads, size**3 / product)
    return Rates(
        products=size**3 / product,
        forward=size**3 / forward,
        itemsize=dtype.itemsize,
        rounding=rounding,
        digest=len(data) / digest,
        disk=4 * len(piece) / disk,
        memory=4 * large.numel() / read,
        start=start,
        threads=threads,
    )


def rounding_sample(threads: int) -> float:
    """Seconds of GPTQ's work on a random weight of `_SAMPLE`, the better of two."""
    import torch

    from qtk.quantization.algorithms.gptq import gptq

    torch.set_num_threads(threads)
    rows, columns = _SAMPLE
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * columns, columns, generator=random)
    weight, hessian = torch.randn(rows, columns, generator=random), inputs.t() @ inputs
    return min(_seconds(lambda: gptq(weight, hessian.clone(), LinearScheme(4, 128, True))) for _ in range(2))


def _start_and_rounding(threads: int, products: float) -> tuple[float, float]:
    """Seconds in which a process of Python comes to its work, and seconds a weight that GPTQ takes beside its products, of which this
    machine makes so many a second. Both of a process of its own, because what a sample takes up would count as this one's memory."""
    script = (
        "import time, qtk.engines.forecast as f, qtk.quantization.algorithms.gptq; start = time.perf_counter(); "
        f"taken = f.rounding_sample({threads}); print(taken, time.perf_counter() - start)"
    )
    begun = time.perf_counter()
    told = subprocess.run(own_python("-c", script), capture_output=True, text=True, env={**os.environ, **own_paths()})
    whole = time.perf_counter() - begun
    if told.returncode:
        raise MachineError(f"A process of Python that was to be timed failed: {told.stderr.strip()[-300:]}")
    taken, inside = map(float, told.stdout.split())
    rows, columns = _SAMPLE
    multiplied = rows * columns**2 / 2 + columns**3 / 6
    return whole - inside, max(taken - multiplied / products, 0.1 * taken) / (rows * columns)


def _sustained_seconds(work: Callable[[], object]) -> float:
    """Of one after the other: the best of them would be a speed that hours of work do not have."""
    work()
    return _seconds(lambda: [work() for _ in range(_PRODUCTS)]) / _PRODUCTS


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def merge_forecast(model: ModelSize, rank: int, rates: Rates) -> StepForecast:
    """Of adapters of this rank, all together, on all linears. Slices are changed and digests taken on all cores while the disk writes, but
    a half of what the two could do at once is lost to waiting for what is being flushed (docs/benchmarks.md)."""
    factors = sum(
        (linear.in_features + linear.out_features) * rank * model.spec.num_layers for linear in model.spec.linears()
    )
    compute = model.weights * (rank / rates.products + _MERGING_SECONDS / rates.threads)
    digest = (2 * model.float_bytes + 4 * factors) / rates.digest
    worked, written = max(compute + digest / rates.threads, digest), model.float_bytes / rates.disk
    seconds = rates.start + max(worked, written) + min(worked, written) / 2
    largest = max(linear.in_features + linear.out_features for linear in model.spec.linears()) * rank * 12
    return StepForecast(
        step="merge",
        seconds=round(seconds, 1),
        memory=resident_bytes() + _SLICES + largest,
        written=model.float_bytes,
        scratch=0,
    )


def quantize_forecast(model: ModelSize, work: QuantizationWork, rates: Rates) -> StepForecast:
    """MachineError where `work.memory` is too little."""
    spec, tokens = model.spec, work.tokens(model.spec)
    need = work.memory_need(spec, rates.itemsize)
    in_memory = activation_bytes(need, work.memory, total=total_memory(), available=_NO_LIMIT)
    streams = 1 if work.effort == "fast" else 2
    wide = streams * tokens * spec.intermediate_size * rates.itemsize
    methods = ("gptq", "awq") if work.method == "auto" else (work.method,)
    block = sum(_block_seconds(model, method, work, rates) for method in methods)
    digest = (model.float_bytes + model.quantized_bytes) / rates.digest / rates.threads
    read_back = model.weights * 2.0e-9
    memory = need.least + min(in_memory, need.rows + wide)
    texts = rates.itemsize * spec.parameters()
    if texts <= text_bytes(work.memory, total=total_memory(), available=_NO_LIMIT, resident=resident_bytes()):
        memory = max(memory, resident_bytes() + texts)
        read_back += _TEXT_TOKENS * texts / rates.memory
    return StepForecast(
        step=f"quantize, {tokens} tokens",
        seconds=round(rates.start + spec.num_layers * block + digest + read_back, 1),
        memory=memory,
        written=model.quantized_bytes,
        scratch=2 * need.rows + max(0, need.rows + wide - in_memory) if tokens else 0,
    )


def _block_seconds(model: ModelSize, method: str, work: QuantizationWork, rates: Rates) -> float:
    tuned = work.effort == "best" and method == "gptq"
    effort = "default" if work.effort == "best" else work.effort
    counted = Work(method, effort, work.tokens(model.spec), work.seq_len, rates.itemsize, _STORED_BYTES)
    multiplied = block_products(model.spec, counted)
    products = multiplied.forward / rates.forward + (multiplied.total - multiplied.forward) / rates.products
    rounding = model.weights / model.spec.num_layers * _BESIDE_ROUNDING * rates.rounding
    return (products + rounding) * (_TUNING if tuned else 1)


def build_forecast(
    model: ModelSize, rates: Rates, *, read: int | None = None, written: int | None = None
) -> StepForecast:
    """The portable engine for this processor: codes are written as they are, block by block. read, written: bytes of the checkpoint and of
    the engine, by default those of the quantized form."""
    spec = model.spec
    read = model.quantized_bytes if read is None else read
    written = model.quantized_bytes if written is None else written
    head = spec.vocab_size * spec.hidden_size
    largest = max(linear.out_features * linear.in_features for linear in spec.linears())
    compute = (read + written) / rates.digest / rates.threads + model.weights * _PACKING_SECONDS / rates.threads
    compute += head * _HEAD * rates.rounding
    return StepForecast(
        step="build-engine --gpu cpu",
        seconds=round(rates.start + max(compute, written / rates.disk), 1),
        # Of the head while it is rounded, or of what stays of that and a linear's codes (docs/benchmarks.md).
        memory=resident_bytes() + int(max(3 * head, 1.6 * head + 7.5 * largest)),
        written=written,
        scratch=0,
    )
