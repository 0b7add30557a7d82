"""Reads a quantized checkpoint back from its files, as whoever deploys it will, and lets it generate a few tokens."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from qtk.calibration.rows import TokenRows
from qtk.errors import GateFailed, InputError, listing
from qtk.models.tokenizer import TextTokenizer, has_tokenizer
from qtk.progress import Progress, warn
from qtk.quantization.generation_check import continue_greedily, count_loops, ends_in_loop, text_prompts
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import ReadBack
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

_MOST = 1000  # offenders named in one message


@dataclass(frozen=True)
class _Stored:
    """linears: how many are quantized; bits_per_weight: mean of these, scales and zero points included."""

    linears: int
    bits_per_weight: float


def read_back(
    directory: Path, intended: QuantizationScheme, reference: ModelWeights, rows: TokenRows | None, *, limit_bytes: int
) -> ReadBack:
    """Checks every tensor in `directory` against the intended scheme, and generates 32 tokens after each of a few texts.

    reference: the float model, whose own texts are generated where most of the quantized model's end in a loop.
    rows: calibration rows, four of which are continued (None: "def " is). limit_bytes: what the blocks may take in memory to
    be kept between tokens.
    Raises GateFailed, naming every linear concerned, when nothing is quantized, a linear is stored otherwise than intended,
    codes are not in range, a scale is zero or not a finite float16, a tensor was never written, the container's own file
    differs, or logits are not finite.
    """
    weights = ModelWeights.open(directory)
    with closing(weights.checkpoint):
        if weights.format is None:
            raise GateFailed("The files just written are a float model's: their config.json names no quantization.")
        stored = _check_linears(weights, intended, reference)
        if faults := weights.format.faults(weights):
            raise _gate(faults)
        # Rounding needs no text, so a model without a tokenizer is not a mistake.
        tokenizer = TextTokenizer(directory) if has_tokenizer(directory) else None
        prompts = text_prompts(rows) if rows is not None else [tokenizer.encode("def ") if tokenizer else [0]]
        texts = continue_greedily(weights, prompts, limit_bytes)
    count = count_loops(texts, lambda: continue_greedily(reference, prompts, limit_bytes))
    if count.repeats:
        warn(
            f"{count.loops} of {len(texts)} texts that the quantized model generated end in a loop, most of the "
            "float model's do not."
        )
    shown = next((text for text in texts if not ends_in_loop(text)), texts[0])
    return ReadBack(
        linears=stored.linears,
        bits_per_weight=round(stored.bits_per_weight, 3),
        texts=len(texts),
        loops=count.loops,
        text=tokenizer.decode(shown) if tokenizer else f"tokens {' '.join(map(str, shown))}",
        repeats=count.repeats,
    )


def _check_linears(weights: ModelWeights, intended: QuantizationScheme, reference: ModelWeights) -> _Stored:
    offenders = _unwritten_floats(weights, reference)
    count, elements, stored_bytes = 0, 0, 0
    with Progress("read back", len(intended.modules), "linears") as progress:
        for name, scheme in intended.modules.items():
            progress.advance()
            if reasons := _otherwise_stored(weights.scheme.of(name), scheme):
                offenders.append(f"{name}: {reasons}")
                continue
            if not scheme.quantized:
                continue
            try:
                linear = weights.linear(name)
            except InputError as error:
                offenders.append(f"{name}: {error}")
                continue
            assert isinstance(linear, QuantizedLinear)
            offenders += [f"{name}: {reason}" for reason in _faults(linear, scheme)]
            count += 1
            elements += linear.codes.numel()
            stored_bytes += sum(
                weights.checkpoint.info(n).nbytes for n in weights.checkpoint.names if n.startswith(f"{name}.")
            )
    if not count:
        offenders.append("no linear is quantized")
    if offenders:
        raise _gate(offenders)
    return _Stored(count, 8 * stored_bytes / elements)


def _gate(offenders: list[str]) -> GateFailed:
    return GateFailed(f"The files just written do not hold what they should:\n{listing(offenders, _MOST)}")


def _otherwise_stored(stored: LinearScheme, intended: LinearScheme) -> str:
    """How the scheme that the files tell differs from the intended one; empty where it does not."""
    if stored.quantized != intended.quantized:
        return f"not stored in {intended.bits} bits"
    if intended.quantized and (stored.bits, stored.group_size) != (intended.bits, intended.group_size):
        return (
            f"{stored.bits} bits in groups of {stored.group_size}, not {intended.bits} in groups of "
            f"{intended.group_size}"
        )
    return ""


def _faults(linear: QuantizedLinear, intended: LinearScheme) -> list[str]:
    """Where one quantized linear is not what was intended, or cannot be right."""
    faults = []
    if linear.bits != intended.bits:
        faults.append(f"not stored in {intended.bits} bits")
    if intended.symmetric and not linear.symmetric:
        faults.append("zero points, though it was to be symmetric")
    if int(linear.codes.max()) >= 2**linear.bits:
        faults.append(f"codes beyond {linear.bits} bits")
    if not bool(torch.isfinite(linear.scales.to(torch.float16)).all()):
        faults.append("scales that are not finite float16 numbers")
    if zeros := int((linear.scales == 0).sum()):  # the grids never have a scale of zero: such a group was not written
        faults.append(f"{zeros} scales are zero, so these groups were never written")
    return faults


def _unwritten_floats(weights: ModelWeights, reference: ModelWeights) -> list[str]:
    """Float tensors that hold nothing but zeros, where the model that they come from has other values."""
    return [
        f"{name}: all zeros, so it was never written"
        for name in weights.checkpoint.names
        if name in reference.checkpoint
        and not bool(weights.checkpoint.tensor(name).any())
        and bool(reference.checkpoint.tensor(name).any())
    ]
