"""The streaming merge: each tensor of the base is read, changed and written a slice of rows at a time.

Peak memory is the low-rank factors of one tensor and a few slices, whatever the model's size. Slices are worked on by
one thread a core, each with torch on one thread: so reading, arithmetic and writing overlap. The main thread takes the digests
of both files from the slices as they come out, in their order, and another one tells the disk what is read next and what can be
written: nothing is read a second time, and little is left to be waited for at the end.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from qtk.adapters import arithmetic, nf4
from qtk.adapters.adapter import Adapter, open_adapter
from qtk.adapters.base_identity import disagreement
from qtk.adapters.card import write_merged_card
from qtk.adapters.companions import choose_tokenizer, write_companions
from qtk.adapters.layout import base_layout
from qtk.adapters.options import MergeOptions
from qtk.adapters.plan import MergePlan, TensorPlan, make_plan
from qtk.adapters.trained_base import TrainedBase, fingerprint, trained_base
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.manifest import FileDigest, ManifestRecorder
from qtk.checkpoint.passing_digest import PassingDigest
from qtk.checkpoint.reader import Checkpoint, all_finite, config_bytes
from qtk.checkpoint.staging import begin_flush, staged_directory
from qtk.checkpoint.writer import CheckpointWriter, raw_bytes
from qtk.errors import InputError, listing
from qtk.machine import return_freed_memory, usable_cores
from qtk.models.rope import with_both_spellings
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress

_SLICE_ELEMENTS = 1 << 20  # 2 MB of bf16 and 4 MB of float32: what a core's share of the cache holds
# QLoRA training loads the base in this dtype, whatever it is stored in, and rounds that to NF4.
_QLORA_DTYPE = torch.bfloat16
_FLUSH_BYTES = 1 << 28  # written before the disk is told to begin
_MOST_WORKERS = 4  # memory bandwidth is used up by then, and each holds its slices


class MergedAdapter(BaseModel):
    """One adapter as it was merged."""

    model_config = ConfigDict(frozen=True)
    path: str
    kind: str
    rank: int
    alpha: float
    weight: float
    tensors: int


class MergeResult(BaseModel):
    """What a merge did. Memory in bytes, `memory_above_start_bytes` beyond what the process held before."""

    model_config = ConfigDict(frozen=True)
    output: str
    adapters: list[MergedAdapter]
    tensors_changed: int
    tensors_copied: int
    nf4_rounded: int
    untied: bool
    vocabulary: int | None
    tokenizer_from: str
    bytes_written: int
    seconds: float
    peak_memory_bytes: int
    memory_above_start_bytes: int


def merge(
    base_path: Path, adapter_paths: Sequence[Path], out: Path, options: MergeOptions, *, overwrite: bool = False
) -> MergeResult:
    """Writes `out`: the base with every adapter's update added, W + sum of weight * s * B A, rounded once.

    Base and adapters are directories, or ids of the hub (fetched into its cache).

    Raises InputError for whatever is wrong with base, adapters or their fit (all of it in one error), for NaN or Inf in
    either, and for an `out` that exists; MachineError for a full disk. Nothing is left under the final name then.
    """
    start = time.monotonic()
    recorder = ManifestRecorder("merge", options.model_dump(mode="json"))
    base_path = model_directory(base_path)
    adapter_paths = [model_directory(path, "adapter") for path in adapter_paths]
    with (
        PeakMemory() as memory,
        staged_directory(out, overwrite=overwrite, inputs=(base_path, *adapter_paths)) as directory,
        closing(Checkpoint(base_path)) as base,
    ):
        recorder.add_input("base", base.path, base.files)
        digests: dict[Path, FileDigest] = {}
        adapters = [open_adapter(path) for path in adapter_paths]
        for adapter in adapters:
            recorder.add_input("adapter", adapter.path, adapter.files)
            if adapter.digest is not None:
                digests[adapter.file.path] = adapter.digest
        weights = adapter_weights(options.weight, adapters)
        if not options.any_base:
            _require_own_base(base, adapters)
        layout = base_layout(base)
        rounds_base = _rounds_base(options, adapters)
        if rounds_base and layout.transposed:
            raise InputError(f"{base.path}: --qlora-base knows no NF4 form of weights that are stored [in, out].")
        plan = make_plan(base, layout, adapters, weights, nf4=rounds_base)
        tokenizer = choose_tokenizer(base, adapters, options.tokenizer, resized=plan.vocabulary is not None)
        digests |= write_tensors(plan, directory, base.path, shard_bytes=int(options.shard_gb * 1e9))
        base.require_unchanged()
        recorder.know(digests)
        write_companions(base, directory, tokenizer, config=_config(base, plan))
        write_merged_card(directory, out.name, base, adapters, weights)
        changed = sum(tensor.changed for tensor in plan.tensors)
        recorder.notes = {
            "adapters": [
                describe_adapter(adapter, weight).model_dump(exclude={"path"})
                for adapter, weight in zip(adapters, weights, strict=True)
            ],
            "tensors_changed": changed,
            "base_rounding": "nf4" if rounds_base else "none",
            "untied": plan.untied,
            "vocabulary": plan.vocabulary,
            "tokenizer_from": str(tokenizer or base.path),
        }
        recorder.write(directory, out, memory.peak_bytes)
    return MergeResult(
        output=str(out),
        adapters=[describe_adapter(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True)],
        tensors_changed=changed,
        tensors_copied=len(plan.tensors) - changed,
        nf4_rounded=sum(tensor.nf4 for tensor in plan.tensors),
        untied=plan.untied,
        vocabulary=plan.vocabulary,
        tokenizer_from=str(tokenizer or base.path),
        bytes_written=sum(tensor.spec.nbytes for tensor in plan.tensors),
        seconds=round(time.monotonic() - start, 3),
        peak_memory_bytes=memory.peak_bytes,
        memory_above_start_bytes=memory.above,
    )


def adapter_weights(given: Sequence[float], adapters: Sequence[Adapter]) -> tuple[float, ...]:
    """The factor of each adapter's update. InputError when they are not one for each."""
    if given and len(given) != len(adapters):
        raise InputError(f"--weight is given {len(given)} times for {len(adapters)} adapters: once for each, or never.")
    return tuple(given) or (1.0,) * len(adapters)


def _require_own_base(base: Checkpoint, adapters: Sequence[Adapter]) -> None:
    disagreements = [
        f"{adapter.path} {sentence}"
        for adapter in adapters
        if (sentence := disagreement(adapter.config.base_model_name_or_path, base) or _changed_since(adapter, base))
    ]
    if disagreements:
        raise InputError(
            f"Another base model is named:\n{listing(disagreements)}\n"
            "Give that base. If this one is the same model under another name, add --any-base."
        )


def _changed_since(adapter: Adapter, base: Checkpoint) -> str | None:
    """A sentence when the adapter knows its base, and this is another, or has been changed."""
    known = trained_base(adapter.path)
    if known is None or known.rounding == "deployed" or known.fingerprint == fingerprint(base):
        return None
    return (
        f"was trained on {known.name}, and {base.path} differs from it: its weights are not those that the adapter was "
        "trained on (another model, or one into which another adapter was merged)"
    )


def _rounds_base(options: MergeOptions, adapters: Sequence[Adapter]) -> bool:
    """Whether the linears of the base are rounded to NF4 before the updates are added."""
    if options.qlora_base != "auto":
        return options.qlora_base == "nf4"
    wanted = {str(adapter.path): known is not None and known.rounding == "nf4" for adapter, known in _known(adapters)}
    if len(set(wanted.values())) > 1:
        raise InputError(
            "Some of the adapters were trained on an NF4 base and others were not, so they have no base in common:\n"
            f"{listing(path + (': NF4' if nf4 else ': not rounded') for path, nf4 in wanted.items())}\n"
            "Say which one to merge onto: --qlora-base nf4 or --qlora-base none."
        )
    return any(wanted.values())


def _known(adapters: Sequence[Adapter]) -> list[tuple[Adapter, TrainedBase | None]]:
    return [(adapter, trained_base(adapter.path)) for adapter in adapters]


def describe_adapter(adapter: Adapter, weight: float) -> MergedAdapter:
    """What a result says of an adapter."""
    config = adapter.config
    return MergedAdapter(
        path=str(adapter.path),
        kind=config.kind,
        rank=config.r,
        alpha=config.lora_alpha,
        weight=weight,
        tensors=len(adapter.file.tensors),
    )


def _config(base: Checkpoint, plan: MergePlan) -> bytes:
    """config.json as it stands, byte for byte, unless the vocabulary or the tie between embedding and head changed, or one
    spelling of the rope settings is missing."""
    spelled = with_both_spellings(base.config)
    changes: dict[str, object] = {"tie_word_embeddings": False} if plan.untied else {}
    if plan.vocabulary is not None:
        changes["vocab_size"] = plan.vocabulary
    if not changes and spelled == base.config:
        return base.config_bytes
    return config_bytes({**spelled, **changes})


class _Buffers:
    """Scratch memory that is kept from slice to slice: fresh pages would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def get(self, role: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape)
        held = self._held.get((role, dtype))
        if held is None or held.numel() < count:
            held = self._held[role, dtype] = torch.empty(max(count, _SLICE_ELEMENTS), dtype=dtype)
        return held[:count].view(shape)


class _ThreadBuffers(_Buffers, threading.local):
    """Scratch memory of one thread."""


@dataclass(frozen=True)
class _Slice:
    """Rows start..stop-1 of one tensor: as they were read, and as they were written."""

    plan: TensorPlan
    start: int
    read: torch.Tensor
    written: torch.Tensor


@dataclass
class _Streaming:
    """A merge in progress: threads, what they write to, the digests of the files so far, and the tensors found to hold NaN
    or Inf."""

    writer: CheckpointWriter
    pool: ThreadPoolExecutor
    disk: ThreadPoolExecutor
    workers: int
    scratch: _ThreadBuffers = field(default_factory=_ThreadBuffers)
    free: deque[_Buffers] = field(default_factory=deque)
    pending: deque[tuple[_Buffers, Future[_Slice]]] = field(default_factory=deque)
    digests: dict[Path, PassingDigest] = field(default_factory=dict)
    bad_base: dict[str, None] = field(default_factory=dict)
    bad_result: dict[str, None] = field(default_factory=dict)
    unflushed: tuple[Path, int] | None = None  # file that is written, and from which byte on nothing was flushed

    def submit(self, work: Callable[[_Buffers], _Slice]) -> None:
        """Queues a slice; waits for the oldest when enough are under way, so that neither slices nor factors pile up in
        memory."""
        while len(self.pending) >= 2 * self.workers:
            self._take_oldest()
        buffers = self.free.popleft() if self.free else _Buffers()
        self.pending.append((buffers, self.pool.submit(work, buffers)))

    def drain(self) -> None:
        while self.pending:
            self._take_oldest()

    def _take_oldest(self) -> None:
        buffers, future = self.pending.popleft()
        done = future.result()
        plan = done.plan
        self._digest(plan.file.path).show(plan.file.byte_offset(plan.source, done.start), raw_bytes(done.read))
        path, offset = self.writer.place(plan.name, done.start)
        self._digest(path).show(offset, raw_bytes(done.written))
        self.free.append(buffers)
        self._flush_some(path, offset + done.written.nbytes)

    def _flush_some(self, path: Path, end: int) -> None:
        if self.unflushed is None or self.unflushed[0] != path:
            self.unflushed = path, 0
        start = self.unflushed[1]
        if end - start >= _FLUSH_BYTES:
            self.unflushed = path, end
            self.disk.submit(begin_flush, path, start, end)

    def _digest(self, path: Path) -> PassingDigest:
        return self.digests.setdefault(path, PassingDigest(path))


def write_tensors(plan: MergePlan, directory: Path, base_name: Path, *, shard_bytes: int) -> dict[Path, FileDigest]:
    """Writes every tensor of the plan. Returns the digests of the files read and written. InputError naming all tensors
    with NaN or Inf, once all were seen."""
    return_freed_memory()
    specs = {tensor.name: tensor.spec for tensor in plan.tensors}
    total = sum(spec.nbytes for spec in specs.values())
    with (
        CheckpointWriter(directory, specs, shard_bytes=shard_bytes) as writer,
        _threads() as (pool, workers),
        ThreadPoolExecutor(1) as disk,
        Progress("merge", total=max(1, total >> 20), unit="MB") as progress,
    ):
        streaming = _Streaming(writer, pool, disk, workers)
        done = shown = 0
        for tensor, following in itertools.zip_longest(plan.tensors, plan.tensors[1:]):
            if following is not None:
                disk.submit(following.file.will_read, following.source)
            _write_tensor(streaming, tensor)
            writer.mark_written(tensor.name)
            done += tensor.spec.nbytes
            progress.advance((done >> 20) - shown, tensor.name)
            shown = done >> 20
        streaming.drain()
        _require_finite(streaming, base_name)
    return {path: digest.finish() for path, digest in streaming.digests.items()}


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    workers = min(usable_cores(), _MOST_WORKERS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool, workers
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _require_finite(streaming: _Streaming, base_name: Path) -> None:
    if streaming.bad_base:
        raise InputError(
            f"{base_name} holds NaN or Inf in {len(streaming.bad_base)} tensors:\n{listing(streaming.bad_base)}\n"
            "The file is damaged."
        )
    if streaming.bad_result:
        raise InputError(
            f"The merged weights are too large for their dtype, or NaN, in {len(streaming.bad_result)} tensors:\n"
            f"{listing(streaming.bad_result)}"
        )


def _write_tensor(streaming: _Streaming, plan: TensorPlan) -> None:
    shape = plan.file.tensors[plan.source].shape
    if not shape or 0 in shape:
        streaming.writer.write(plan.name, plan.file.read(plan.source))
        return
    if not plan.changed:
        for start, stop in _slices(shape):
            streaming.submit(functools.partial(_copy, streaming, plan, start, stop))
        return
    change = _prepare(streaming, plan)
    for start, stop in _slices(shape, aligned=plan.nf4):
        streaming.submit(functools.partial(_change, streaming, plan, change, start, stop))


def _slices(shape: tuple[int, ...], *, aligned: bool = False) -> Iterator[tuple[int, int]]:
    """Row ranges of about a slice each; `aligned`: starting on a block of NF4."""
    width = math.prod(shape[1:])
    step = max(1, _SLICE_ELEMENTS // width)
    if aligned:
        unit = nf4.BLOCK // math.gcd(width, nf4.BLOCK)
        step = max(unit, step // unit * unit)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


@dataclass(frozen=True)
class _Change:
    """What the slices of one tensor share: stacked factors, DoRA's vector and column norms, NF4's block magnitudes, rows that
    an adapter holds whole by their index."""

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    column_norms: torch.Tensor | None = None
    absmax: torch.Tensor | None = None
    restored: torch.Tensor | None = None
    rows: Mapping[int, torch.Tensor] = field(default_factory=dict)


def _prepare(streaming: _Streaming, plan: TensorPlan) -> _Change:
    updates = [
        arithmetic.factors(u.adapter.tensor(u.a), u.adapter.tensor(u.b), u.scale, transposed=u.transposed)
        for u in plan.low_rank
    ]
    left, right = arithmetic.stack(updates) if updates else (None, None)
    dora = next((u for u in plan.low_rank if u.magnitude), None)
    magnitude = dora.adapter.tensor(dora.magnitude).float().reshape(-1) if dora else None
    absmax = restored = column_norms = None
    if plan.nf4:
        absmax = torch.cat(list(streaming.pool.map(lambda s: _block_absmax(streaming, plan, *s), _all(plan, True))))
        restored = nf4.double_quantized(absmax)
    if dora and dora.transposed:
        added = _Change(left, right)
        squares = streaming.pool.map(lambda s: _column_squares(streaming, plan, added, *s), _all(plan, False))
        column_norms = sum(squares, start=torch.zeros(1, dtype=torch.float64)).sqrt().float()
    return _Change(left, right, magnitude, column_norms, absmax, restored, _token_rows(plan))


def _all(plan: TensorPlan, aligned: bool) -> list[tuple[int, int]]:
    return list(_slices(plan.file.tensors[plan.source].shape, aligned=aligned))


def _read(buffers: _Buffers, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
    info = plan.file.tensors[plan.source]
    rows = buffers.get("read", info.dtype, (stop - start, *info.shape[1:]))
    plan.file.read_rows_into(plan.source, start, rows)
    return rows


def _block_absmax(streaming: _Streaming, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
    return nf4.block_absmax(_read(streaming.scratch, plan, start, stop).to(_QLORA_DTYPE))


def _column_squares(streaming: _Streaming, plan: TensorPlan, change: _Change, start: int, stop: int) -> torch.Tensor:
    rows = _read(streaming.scratch, plan, start, stop)
    return arithmetic.column_squares(_added(streaming, rows, change, start, stop))


def _added(streaming: _Streaming, rows: torch.Tensor, change: _Change, start: int, stop: int) -> torch.Tensor:
    """These rows in float32, rounded to NF4 if asked, with the update added."""
    wide = streaming.scratch.get("wide", torch.float32, tuple(rows.shape))
    if change.absmax is not None and change.restored is not None:
        width = rows.shape[1]
        blocks = slice(start * width // nf4.BLOCK, -(-stop * width // nf4.BLOCK))
        rows = nf4.rounded(rows.to(_QLORA_DTYPE), change.absmax[blocks], change.restored[blocks])
    wide.copy_(rows)
    if change.left is not None and change.right is not None:
        arithmetic.add_update_(wide, change.left[start:stop], change.right)
    return wide


def _copy(streaming: _Streaming, plan: TensorPlan, start: int, stop: int, buffers: _Buffers) -> _Slice:
    rows = _read(buffers, plan, start, stop)
    if not all_finite(rows):
        streaming.bad_base[plan.name] = None
    streaming.writer.write_rows(plan.name, start, rows)
    return _Slice(plan, start, rows, rows)


def _change(
    streaming: _Streaming, plan: TensorPlan, change: _Change, start: int, stop: int, buffers: _Buffers
) -> _Slice:
    rows = _read(buffers, plan, start, stop)
    wide = _added(streaming, rows, change, start, stop)
    if change.column_norms is not None and change.magnitude is not None:
        arithmetic.scale_columns_(wide, change.magnitude, change.column_norms)
    elif change.magnitude is not None:
        arithmetic.scale_rows_(wide, change.magnitude[start:stop])
    result = buffers.get("result", plan.spec.dtype, tuple(wide.shape)).copy_(wide)
    for index in range(start, stop) if change.rows else ():
        if index in change.rows:
            result[index - start] = change.rows[index]
    if not all_finite(result):
        (streaming.bad_result if all_finite(rows) else streaming.bad_base)[plan.name] = None
    streaming.writer.write_rows(plan.name, start, result)
    return _Slice(plan, start, rows, result)


def _token_rows(plan: TensorPlan) -> dict[int, torch.Tensor]:
    """The rows that adapters hold whole, by their index; the last adapter's count."""
    return {
        index: row
        for tokens in plan.tokens
        for row, index in zip(tokens.adapter.tensor(tokens.key).to(plan.spec.dtype), tokens.indices, strict=True)
    }
