"""Reads a quantized checkpoint back from its files, as whoever deploys it will: every tensor, and every block on a few tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qtk.errors import GateFailed, InputError, listing
from qtk.machine import available_memory, fast_matmul_dtype, total_memory
from qtk.models.forward import rms_norm
from qtk.models.spec import LM_HEAD_MODULE, ModelSpec
from qtk.models.tokenizer import TextTokenizer, has_tokenizer
from qtk.peak_memory import resident_bytes
from qtk.progress import Progress, warn
from qtk.quantization.blocks.streams import StoredWeights
from qtk.quantization.checkpoint_run import QuantizationTask
from qtk.quantization.generation_check import continue_greedily, count_loops, ends_in_loop, text_prompts
from qtk.quantization.memory_need import text_bytes
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.probe import Probe
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import ReadBack
from qtk.quantization.scheme_model import LinearScheme

_MOST = 1000  # offenders named in one message


@dataclass
class _Stored:
    """What was found so far. linears: how many are quantized, with so many elements in so many bytes; offenders: what is not as
    it should be."""

    linears: int = 0
    elements: int = 0
    nbytes: int = 0
    largest_difference: float = 0.0
    offenders: list[str] = field(default_factory=list)


def room_for_texts(spec: ModelSpec, wanted: str, memory: float | None) -> int | None:
    """The bytes in which a text's blocks are kept from token to token; None where no texts are generated.

    wanted: as `--texts` says; auto: where the whole model, dequantized, has room. memory: GB that the run may take, or None.
    """
    room = text_bytes(memory, total=total_memory(), available=available_memory(), resident=resident_bytes())
    fits = spec.parameters() * fast_matmul_dtype().itemsize <= room
    return room if wanted == "always" or (wanted == "auto" and fits) else None


def read_back(directory: Path, task: QuantizationTask, *, text_room: int | None) -> ReadBack:
    """Checks every tensor in `directory` against what the task was to write, and every block against what was recorded of it
    while it was quantized: each file is read once. text_room: generate 32 tokens after each of a few texts as well, with as many
    blocks in memory as so many bytes hold; the others are read anew for each token.

    Raises GateFailed, naming every linear and block concerned, when nothing is quantized, a linear is stored otherwise than
    intended, codes are not in range, a scale is zero or not a finite float16, a tensor was never written, a block's outputs
    are not those recorded, the container's own file differs, or logits are not finite.
    """
    start = time.monotonic()
    weights = ModelWeights.open(directory)
    with closing(weights.checkpoint):
        if weights.format is None:
            raise GateFailed("The files just written are a float model's: their config.json names no quantization.")
        probe = task.probe(directory)
        stored = _check_blocks(weights, task, probe)
        if faults := weights.format.faults(weights):
            raise _gate(faults)
        _require_finite_logits(weights, probe)
        found = ReadBack(
            linears=stored.linears,
            bits_per_weight=round(8 * stored.nbytes / stored.elements, 3),
            blocks=weights.spec.num_layers,
            tokens=probe.tokens.numel(),
            largest_difference=stored.largest_difference,
        )
        if text_room is not None:
            found = _with_texts(found, weights, task, text_room)
    return found.model_copy(update={"seconds": round(time.monotonic() - start, 2)})


def _with_texts(found: ReadBack, weights: ModelWeights, task: QuantizationTask, room: int) -> ReadBack:
    # Rounding needs no text, so a model without a tokenizer is not a mistake.
    directory, rows = weights.checkpoint.path, task.rows
    tokenizer = TextTokenizer(directory) if has_tokenizer(directory) else None
    prompts = text_prompts(rows) if rows is not None else [tokenizer.encode("def ") if tokenizer else [0]]
    texts = continue_greedily(weights, prompts, room)
    count = count_loops(texts, lambda: continue_greedily(task.source, prompts, room))
    if count.repeats:
        warn(
            f"{count.loops} of {len(texts)} texts that the quantized model generated end in a loop, most of the "
            "float model's do not."
        )
    shown = next((text for text in texts if not ends_in_loop(text)), texts[0])
    text = tokenizer.decode(shown) if tokenizer else f"tokens {' '.join(map(str, shown))}"
    of_texts = {"texts": len(texts), "loops": count.loops, "text": text, "repeats": count.repeats}
    return found.model_copy(update=of_texts)


def _check_blocks(weights: ModelWeights, task: QuantizationTask, probe: Probe) -> _Stored:
    """Every linear, and every block as a whole, one in memory at a time. Raises GateFailed for all that is wrong."""
    spec, intended = weights.spec, task.scheme
    stored = _Stored(offenders=_unwritten_floats(weights, task.source))
    with Progress("read back", spec.num_layers, "blocks") as progress:
        for layer in range(spec.num_layers):
            prefix = spec.block_prefix(layer)
            block: dict[str, torch.Tensor | QuantizedLinear] = {}
            before = len(stored.offenders)
            for linear in spec.linears():
                found = _checked(weights, prefix + linear.name, intended.of(prefix + linear.name), stored)
                if found is not None:
                    block[f"{linear.name}.weight"] = found
            if len(stored.offenders) == before:
                _compare_block(weights, layer, block, probe, stored)
            progress.advance()
    if LM_HEAD_MODULE in intended.modules:
        _checked(weights, LM_HEAD_MODULE, intended.of(LM_HEAD_MODULE), stored)
    if not stored.linears:
        stored.offenders.append("no linear is quantized")
    if stored.offenders:
        raise _gate(stored.offenders)
    return stored


def _checked(
    weights: ModelWeights, name: str, scheme: LinearScheme, stored: _Stored
) -> torch.Tensor | QuantizedLinear | None:
    """The weight of a linear, or None, and a line among the offenders, where it is not what was intended."""
    if reasons := _otherwise_stored(weights.scheme.of(name), scheme):
        stored.offenders.append(f"{name}: {reasons}")
        return None
    if not scheme.quantized:
        return None if name == LM_HEAD_MODULE else weights.linear(name)
    try:
        linear = weights.linear(name)
    except InputError as error:
        stored.offenders.append(f"{name}: {error}")
        return None
    assert isinstance(linear, QuantizedLinear)
    stored.offenders += [f"{name}: {reason}" for reason in _faults(linear, scheme)]
    stored.linears += 1
    stored.elements += linear.codes.numel()
    checkpoint = weights.checkpoint
    stored.nbytes += sum(checkpoint.info(n).nbytes for n in checkpoint.names if n.startswith(f"{name}."))
    return linear


def _compare_block(
    weights: ModelWeights,
    layer: int,
    linears: Mapping[str, torch.Tensor | QuantizedLinear],
    probe: Probe,
    stored: _Stored,
) -> None:
    """Adds the block to the offenders where it does not put out what was recorded."""
    spec, prefix = weights.spec, weights.spec.block_prefix(layer)
    block = dict(linears)
    for name in spec.norms():
        block[f"{name}.weight"] = weights.checkpoint.tensor(f"{prefix}{name}.weight")
    for linear in spec.linears():
        if linear.bias and (bias := weights.bias(prefix + linear.name)) is not None:
            block[f"{linear.name}.bias"] = bias
    on_device = StoredWeights(block, probe.dtype, probe.device)
    difference = probe.difference(layer, weights, on_device)
    stored.largest_difference = max(stored.largest_difference, difference)
    if difference > probe.tolerance:
        stored.offenders.append(
            f"{prefix.rstrip('.')}: computes something else than the block that was quantized (a token moves by "
            f"{difference:.1e} of its norm)"
        )


def _require_finite_logits(weights: ModelWeights, probe: Probe) -> None:
    hidden = rms_norm(probe.last().cpu(), weights.final_norm(), weights.spec.rms_norm_eps)
    if not bool(torch.isfinite(hidden @ weights.lm_head(probe.dtype).t()).all()):
        raise GateFailed("The quantized model's logits are not finite: it cannot be used.")


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
