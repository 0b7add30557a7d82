"""The memory that a quantization needs, counted part by part before it begins: what `--memory` is held against.

The parts are what is alive at one time in the modules that they name; what is left over goes to activations, of which the
rest lies in files. The count is an upper bound within a few percent (docs/benchmarks.md), whatever the number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtk.errors import MachineError
from qtk.models.spec import Linear, ModelSpec
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.sizes import size_text

_FLOAT = 4  # bytes of float32, in which H, drift and the weight that is being rounded are held
_STRIP = 32 << 20  # rows of a weight that are float32 at once
_STRIPS = 8
_CHUNKS_ALIVE = 5  # of activations in the statistics: both streams, bounded, and their difference
_TUNING_BYTES = (
    30  # of a weight under tuning: latent value, Adam's two, gradient, codes, the weight itself and its gradient
)
_MOST_CHUNK_TOKENS = 4096  # large enough for fast products, small enough for the cache
_CHUNK_VALUES = 1 << 25  # of the widest activation
_SHARE_OF_MEMORY = 16  # activations take a sixteenth of it, unless --memory says otherwise
_SHARE_OF_TEXTS = 8  # texts take an eighth of it
_ROOM = 64 << 20  # what the allocator holds beside


@dataclass(frozen=True)
class HeldMemory:
    """What is held while something is done. bytes: of all that is alive then, activations that wait in rows aside."""

    doing: str
    bytes: int


@dataclass(frozen=True)
class MemoryNeed:
    """resident: what the process holds before it begins. parts: by what is done. rows: bytes of the activations that are
    carried from block to block; they lie in files where there is no room."""

    resident: int
    parts: tuple[HeldMemory, ...]
    rows: int

    @property
    def largest(self) -> HeldMemory:
        return max(self.parts, key=lambda part: part.bytes)

    @property
    def least(self) -> int:
        """Bytes of memory with which the run does, all rows in files."""
        return self.resident + self.largest.bytes + _ROOM


@dataclass(frozen=True)
class Work:
    """What decides the memory, beside the model. tokens: rows times their length; seq_len: of a row. itemsize, stored_itemsize:
    bytes of a value in products and in the checkpoint."""

    method: str
    effort: str
    tokens: int
    seq_len: int
    itemsize: int
    stored_itemsize: int


def activation_bytes(need: MemoryNeed, wanted: float | None, *, total: int, available: int) -> int:
    """Bytes that activations may take in memory. wanted: GB that the whole run may take (None: what it needs, and a sixteenth of
    `total` for activations). MachineError, with the least that would do, where that is too little."""
    if wanted is not None:
        limit = int(wanted * 1e9)
        if limit < need.least:
            raise MachineError(
                f"--memory {wanted:g} is too little: {_sentence(need)} Give --memory {_gigabytes(need.least)}."
            )
        return limit - need.least
    if need.least - need.resident > available:
        raise MachineError(f"This machine has {size_text(available)} of memory free: {_sentence(need)}")
    return min(total // _SHARE_OF_MEMORY, max(0, available + need.resident - need.least))


def text_bytes(wanted: float | None, *, total: int, available: int, resident: int) -> int:
    """Bytes in which the texts at the end of a run may keep blocks: an eighth of the machine's, as far as that is free. wanted: GB that
    the whole run may take, of which `resident` is gone (None: no limit)."""
    room = min(total // _SHARE_OF_TEXTS, available // 2)
    return room if wanted is None else min(room, max(0, int(wanted * 1e9) - resident))


def _sentence(need: MemoryNeed) -> str:
    largest = need.largest
    return (
        f"{size_text(need.least)} are needed at the least, {size_text(largest.bytes)} of them for {largest.doing}, with all "
        "activations on disk. --effort fast needs less than default and that less than best; --method rtn needs least."
    )


def _gigabytes(count: int) -> str:
    """Rounded up to a tenth."""
    return f"{-(-count // 10**8) / 10:g}"


def chunk_tokens(spec: ModelSpec) -> int:
    """How many tokens are worked on together: so many that a chunk of the widest activation stays under 128 MB in float32."""
    return min(_MOST_CHUNK_TOKENS, _CHUNK_VALUES // max(linear.in_features for linear in spec.linears()))


def memory_need(spec: ModelSpec, scheme: QuantizationScheme, work: Work, resident: int) -> MemoryNeed:
    """What a quantization of this model needs. resident: bytes that the process holds already."""
    block = sum(linear.out_features * linear.in_features for linear in spec.linears())
    streams = {"fast": 1, "default": 2, "best": 4}[work.effort] if work.method != "awq" else 1
    if work.method == "auto":
        streams = max(streams, 1) + 2
    parts = [
        HeldMemory("writing embedding and head", _outside(spec, scheme, work)),
        HeldMemory("reading a block back", block + 4 * _FLOAT * _largest(spec) + _strips(_largest(spec))),
    ]
    held = block * work.stored_itemsize
    if work.method == "rtn":
        parts.append(HeldMemory("rounding a block", held + 2 * block + 2 * _strips(_largest(spec))))
        return MemoryNeed(resident, tuple(parts), 0)
    if work.method in ("gptq", "auto"):
        parts += _gptq_parts(spec, work, held)
    if work.method in ("awq", "auto"):
        parts.append(HeldMemory("scaling a block", held + _awq(spec, block)))
    if work.method == "auto":
        parts.append(HeldMemory("following rows held back", held + block * (1 + work.itemsize) + _chunk(spec, work)))
    if work.effort == "best" and work.method != "awq":
        tuned = held + block * (_TUNING_BYTES + work.itemsize) + 4 * _chunk(spec, work)
        parts.append(HeldMemory("tuning a block", tuned))
    rows = streams * work.tokens * spec.hidden_size * work.itemsize
    return MemoryNeed(resident, tuple(parts), rows)


def _gptq_parts(spec: ModelSpec, work: Work, held: int) -> list[HeldMemory]:
    """The forward pass and the sets of linears in their order; `held` is the float block as stored."""
    converted = 0 if work.itemsize == work.stored_itemsize else work.itemsize
    sets: dict[str, list[Linear]] = {}
    for linear in spec.linears():
        sets.setdefault(linear.reads, []).append(linear)
    parts, codes = [], 0
    tokens = max(work.seq_len, min(chunk_tokens(spec), work.tokens))
    for members in sets.values():
        n, rows = members[0].in_features, sum(member.out_features for member in members)
        name = ", ".join(member.name.rpartition(".")[2] for member in members)
        weight = rows * n
        drift = 0 if work.effort == "fast" else _FLOAT * (weight if len(members) == 1 and 2 * rows < n else n * n)
        matrices = _FLOAT * n * n + drift
        of_outputs = 0 < drift < _FLOAT * n * n
        sums = tokens * (_CHUNKS_ALIVE * n + (rows if of_outputs else 0)) * _FLOAT + (
            _FLOAT * weight if of_outputs else 0
        )
        stacked = weight * work.stored_itemsize if len(members) > 1 else 0
        columns = _FLOAT * (512 * (n + rows) + 3 * 128 * rows)  # of a span and of a block of GPTQ
        rounding = stacked + _FLOAT * weight + 2 * weight + _strips(weight) + columns
        parts.append(HeldMemory(f"summing the Hessian of {name}", held + codes + matrices + sums))
        parts.append(HeldMemory(f"rounding {name}", held + codes + matrices + rounding))
        codes += weight
        products = weight * (converted or 1) + tokens * (3 * rows + 2 * n) * work.itemsize
        parts.append(HeldMemory(f"computing with {name}", held + codes + products))
    return parts


def _awq(spec: ModelSpec, block: int) -> int:
    hessians = sum({linear.reads: _FLOAT * linear.in_features**2 for linear in spec.linears()}.values())
    return 2 * _FLOAT * block + hessians + 7 * _FLOAT * 2 * _largest(spec) + block


def _outside(spec: ModelSpec, scheme: QuantizationScheme, work: Work) -> int:
    """The head in products when the logits are looked at, or while it is rounded."""
    table = spec.vocab_size * spec.hidden_size
    rounded = table if any(name == "lm_head" for name in scheme.quantized_modules()) else 0
    return table * (work.stored_itemsize + work.itemsize) + rounded + _strips(rounded)


def _strips(weight: int) -> int:
    """What the search for grids holds of a matrix of so many elements."""
    return _STRIPS * min(_STRIP, _FLOAT * weight)


def _largest(spec: ModelSpec) -> int:
    return max(linear.out_features * linear.in_features for linear in spec.linears())


def _chunk(spec: ModelSpec, work: Work) -> int:
    return chunk_tokens(spec) * 4 * spec.intermediate_size * work.itemsize
