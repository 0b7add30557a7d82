"""What it takes to prepare a model on this machine: memory, disk and time of merging, quantizing and building, before any of it.

Bytes follow from the shapes. Times follow from counted products and bytes, and from how fast this machine is just now: a
product of matrices, a sha256 and a write to the disk are timed, which takes about two seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.json_file import read_json
from qtk.engines.memory import model_bytes
from qtk.engines.preparation_options import PreparationOptions
from qtk.errors import InputError, MachineError
from qtk.machine import limit_threads, total_memory, unhindered_threads
from qtk.models.registry import spec_from_config
from qtk.models.spec import ModelSpec
from qtk.peak_memory import resident_bytes
from qtk.quantization.memory_need import Work, activation_bytes, memory_need
from qtk.quantization.products import block_products
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme, float_scheme
from qtk.sizes import size_text

_STORED_BYTES = 2  # of a float weight: bfloat16 or float16
# Seconds a weight, on one core of this kind: the search for grids and the columns that are rounded one by one.
_ROUNDING_SECONDS = 2.0e-7
_MERGING_SECONDS = 1.0e-9  # a weight: to float32, back, and looked through for NaN
_NO_LIMIT = 1 << 60  # a prediction is given even where the memory is not free just now
_SLICES = 10 * 8 << 20  # of a merge
_SHARE_OF_DISK = 8  # a write is timed with four pieces of at most this part of what is free, so with half of it at most
_SMALLEST_PIECE = 1 << 18


class Rates(BaseModel):
    """How fast this machine is: multiply-adds a second with all threads, bytes a second of sha256 on one core and of writes
    that reach the disk."""

    products: float
    digest: float
    disk: float
    threads: int


class StepForecast(BaseModel):
    """What one step takes. Bytes; seconds. memory: at its peak; scratch: on the disk while it runs, removed at its end."""

    step: str
    seconds: float
    memory: int
    written: int
    scratch: int


class Preparation(BaseModel):
    """The steps in their order, and the rates that their times follow from."""

    model: str
    steps: list[StepForecast]
    rates: Rates
    free_disk: int

    @property
    def needed_disk(self) -> int:
        """Bytes of the disk that the steps take at most, their results left where they are."""
        steps = self.steps
        return max(sum(s.written for s in steps[: i + 1]) + step.scratch for i, step in enumerate(steps))


@dataclass(frozen=True)
class _Model:
    spec: ModelSpec
    weights: int
    float_bytes: int
    int4_bytes: int


def plan_preparation(
    model_dir: Path | str, options: PreparationOptions, rates: Callable[[Path], Rates] | None = None
) -> Preparation:
    """Predicts the steps for a model directory or an id of the hub; config.json is enough. rates: measures the machine (None:
    `measured_rates`). MachineError where `memory` is too little for quantize; InputError for a directory without config.json."""
    directory = model_directory(model_dir, "config")
    config = read_json(directory / "config.json")
    if not config:
        raise InputError(f"{directory} has no config.json.")
    spec = spec_from_config(config, str(directory / "config.json"))
    place = Path.cwd()
    found = (rates or measured_rates)(place)
    model = _model(spec)
    steps = [_merge(model, options, found), _quantize(model, options, found), _build(model, found)]
    free = os.statvfs(place)
    return Preparation(model=directory.name, steps=steps, rates=found, free_disk=free.f_bavail * free.f_frsize)


def measured_rates(place: Path) -> Rates:
    """Times this machine as it is now, with a file of 256 MB in `place` that is removed again; a smaller one where the disk is
    nearly full, and MachineError where it is full."""
    import torch

    threads = limit_threads(unhindered_threads(None).threads)
    size = 1536
    a = torch.ones(size, size)
    product = min(_seconds(lambda: a @ a) for _ in range(4))
    data = bytes(1 << 26)
    digest = min(_seconds(lambda: hashlib.sha256(data).digest()) for _ in range(2))
    free = shutil.disk_usage(place).free
    piece = data[: free // _SHARE_OF_DISK]
    if len(piece) < _SMALLEST_PIECE:
        raise MachineError(
            f"{place}: the disk has {size_text(free)} free, too little to time a write. Free some room, or call `qtk plan` in the "
            "directory that the results are to be written to."
        )

    def write() -> None:
        with tempfile.TemporaryFile(dir=place) as file:
            for _ in range(4):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    disk = _seconds(write)
    return Rates(products=size**3 / product, digest=len(data) / digest, disk=4 * len(piece) / disk, threads=threads)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _model(spec: ModelSpec) -> _Model:
    linears = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
    group = next((size for size in (128, 64, 32) if all(n % size == 0 for _, n in linears.values())), 32)
    stored = LinearScheme(4, group, True)
    scheme = QuantizationScheme(stored, {**float_scheme(spec).modules, **dict.fromkeys(linears, stored)})
    weights = sum(rows * columns for rows, columns in linears.values())
    return _Model(spec, weights, _STORED_BYTES * spec.parameters(), model_bytes(spec, scheme).total)


def _merge(model: _Model, options: PreparationOptions, rates: Rates) -> StepForecast:
    """Digests are taken by one thread, slices are changed by the others, and the disk writes: what takes longest decides."""
    factors = sum(
        (linear.in_features + linear.out_features) * options.rank * model.spec.num_layers
        for linear in model.spec.linears()
    )
    compute = model.weights * (options.rank / rates.products + _MERGING_SECONDS / rates.threads)
    digest = (2 * model.float_bytes + 4 * factors) / rates.digest
    on_cores = compute + digest / rates.threads
    seconds = max(on_cores, digest, model.float_bytes / rates.disk)
    largest = max(linear.in_features + linear.out_features for linear in model.spec.linears()) * options.rank * 12
    return StepForecast(
        step="merge",
        seconds=round(seconds, 1),
        memory=_idle() + _SLICES + largest,
        written=model.float_bytes,
        scratch=0,
    )


def _quantize(model: _Model, options: PreparationOptions, rates: Rates) -> StepForecast:
    spec = model.spec
    seq_len = min(options.seq_len or 2048, spec.max_positions)
    share = {"fast": 0.25, "default": 0.5}[options.effort]
    widest = max(linear.in_features for linear in spec.linears())
    offered = options.samples * seq_len
    tokens = min(offered, max(round(share * offered), 3 * widest))
    work = Work("gptq", options.effort, tokens, seq_len, 4, _STORED_BYTES)
    need = memory_need(spec, float_scheme(spec), work, _idle())
    in_memory = activation_bytes(need, options.memory, total=total_memory(), available=_NO_LIMIT)
    streams = 1 if options.effort == "fast" else 2
    wide = streams * tokens * spec.intermediate_size * 4
    block = block_products(spec, work).total / rates.products + model.weights / spec.num_layers * _ROUNDING_SECONDS
    digest = (model.float_bytes + model.int4_bytes) / rates.digest / rates.threads
    read_back = model.weights * 2.0e-9
    return StepForecast(
        step=f"quantize, {tokens} tokens",
        seconds=round(spec.num_layers * block + digest + read_back, 1),
        memory=need.least + min(in_memory, need.rows + wide),
        written=model.int4_bytes,
        scratch=2 * need.rows + max(0, need.rows + wide - in_memory),
    )


def _build(model: _Model, rates: Rates) -> StepForecast:
    """The portable engine for this processor: codes are written as they are, block by block."""
    spec = model.spec
    head = spec.vocab_size * spec.hidden_size
    seconds = (
        2 * model.int4_bytes / rates.digest / rates.threads + model.int4_bytes / rates.disk + model.weights * 1.0e-9
    )
    return StepForecast(
        step="build-engine --gpu cpu",
        seconds=round(seconds, 1),
        memory=_idle() + 6 * head + 6 * max(linear.out_features * linear.in_features for linear in spec.linears()),
        written=model.int4_bytes,
        scratch=0,
    )


def _idle() -> int:
    """What a command holds before it works: Python and torch."""
    return resident_bytes()
