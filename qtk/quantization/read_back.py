"""Reads a quantized checkpoint back from its files, as whoever deploys it will, and lets it generate a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from qtk.calibration.rows import TokenRows
from qtk.errors import GateFailed, InputError, listing
from qtk.machine import fast_matmul_dtype
from qtk.models.forward import KeyValues, attention_mask, block_forward, rms_norm
from qtk.models.tokenizer import TextTokenizer, has_tokenizer
from qtk.progress import Progress, note
from qtk.quantization.formats.base import Format, LinearScheme, QuantizationScheme
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear

_NEW_TOKENS = 32
_PROMPT_TOKENS = 16
_LONGEST_PERIOD = 16  # a text that ends in copies of so few tokens is a repetition
_MOST = 1000  # offenders named in one message


class ReadBack(BaseModel):
    """What was found in the written files. bits_per_weight: of the quantized linears, scales and zero points included;
    text: greedy continuation of calibration text (its ids where there is no tokenizer); repeats: it ends in a loop, where
    the float model's does not."""

    model_config = ConfigDict(frozen=True)

    linears: int
    bits_per_weight: float
    text: str
    repeats: bool


def read_back(
    directory: Path,
    intended: QuantizationScheme,
    reference: ModelWeights,
    rows: TokenRows | None,
    *,
    limit_bytes: int,
    container: Format | None = None,
) -> ReadBack:
    """Checks every tensor in `directory` against the intended scheme, and generates 32 tokens.

    reference: the float model, asked for its own 32 tokens where these end in a repetition: some texts invite one.
    rows: calibration rows, whose first is continued (None: "def " is). limit_bytes: what the blocks may take in memory to
    be kept between tokens; those beyond it are read anew for each, from what the system still holds of the files.
    container: what was written, whose own files beside the checkpoint are compared with it.
    Raises GateFailed, naming every linear concerned, when nothing is quantized, a linear is stored otherwise than intended,
    codes are not in range, a scale is zero or no finite float16, a tensor was never written, the container's own file
    differs, or logits are not finite.
    """
    weights = ModelWeights.open(directory)
    with closing(weights.checkpoint):
        count, bits = _check_linears(weights, intended, reference)
        if container and (faults := container.faults(directory)):
            raise _gate(faults)
        # Rounding needs no text, so a model without a tokenizer is no mistake.
        tokenizer = TextTokenizer(directory) if has_tokenizer(directory) else None
        if rows is not None:
            prompt = rows.tokens[0, : min(_PROMPT_TOKENS, int(rows.lengths[0]))].tolist()
        else:
            prompt = tokenizer.encode("def ") if tokenizer else [0]
        new = _generate(weights, prompt, limit_bytes)
    repeats = _repeats(new) and not _repeats(_generate(reference, prompt, limit_bytes))
    if repeats:
        note("WARNING: what the quantized model generated ends in a repetition, what the float model did does not.")
    text = tokenizer.decode(new) if tokenizer else f"tokens {' '.join(map(str, new))}"
    return ReadBack(linears=count, bits_per_weight=round(bits, 3), text=text, repeats=repeats)


def _check_linears(weights: ModelWeights, intended: QuantizationScheme, reference: ModelWeights) -> tuple[int, float]:
    """(linears, mean bits per weight of those quantized)."""
    if weights.scheme is None:
        raise GateFailed("The files just written are those of a float model: their config.json names no quantization.")
    offenders, count, elements, stored = [], 0, 0, 0
    offenders += _unwritten_floats(weights, reference)
    with Progress("read back", len(intended.modules), "linear") as progress:
        for name, scheme in intended.modules.items():
            progress.advance()
            if reasons := _otherwise_stored(weights.scheme.modules.get(name), scheme):
                offenders.append(f"{name}: {reasons}")
                continue
            if scheme.bits == 16:
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
            stored += sum(
                weights.checkpoint.info(n).nbytes for n in weights.checkpoint.names if n.startswith(f"{name}.")
            )
    if not count:
        offenders.append("no linear is quantized")
    if offenders:
        raise _gate(offenders)
    return count, 8 * stored / elements


def _gate(offenders: list[str]) -> GateFailed:
    return GateFailed(f"The files just written do not hold what they should:\n{listing(offenders, _MOST)}")


def _otherwise_stored(found: LinearScheme | None, intended: LinearScheme) -> str:
    """How the scheme that the files tell differs from the intended one; empty where it does not."""
    if found is None or (found.bits == 16) != (intended.bits == 16):
        return f"not stored in {intended.bits} bits"
    if intended.bits < 16 and (found.bits, found.group_size) != (intended.bits, intended.group_size):
        return (
            f"{found.bits} bits in groups of {found.group_size}, not {intended.bits} in groups of {intended.group_size}"
        )
    return ""


def _faults(linear: QuantizedLinear, intended: LinearScheme) -> list[str]:
    """What is wrong with one quantized linear."""
    faults = []
    if linear.bits != intended.bits:
        faults.append(f"not stored in {intended.bits} bits")
    if intended.symmetric and not linear.symmetric:
        faults.append("zero points, though it was to be symmetric")
    if int(linear.codes.max()) >= 2**linear.bits:
        faults.append(f"codes beyond {linear.bits} bits")
    if not bool(torch.isfinite(linear.scales.to(torch.float16)).all()):
        faults.append("scales that are no finite float16 numbers")
    if zeros := int((linear.scales == 0).sum()):  # the grids never have one: such a group was not written
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


def _generate(weights: ModelWeights, prompt: list[int], limit_bytes: int) -> list[int]:
    """32 tokens after the prompt, greedily, end of text ignored."""
    spec, dtype = weights.spec, fast_matmul_dtype()
    block_bytes = dtype.itemsize * sum(x.out_features * x.in_features for x in spec.linears())
    kept: dict[int, Mapping[str, torch.Tensor]] = {}
    caches = [KeyValues(window) for window in spec.windows]
    norm, head = weights.final_norm(), weights.lm_head(dtype)
    cos, sin = spec.rope.tables(spec.head_dim, len(prompt) + _NEW_TOKENS)
    tokens, start = list(prompt), 0
    with Progress("generate", _NEW_TOKENS, "token") as progress:
        for _ in range(_NEW_TOKENS):
            hidden, now = weights.embed(torch.tensor([tokens[start:]]), dtype), slice(start, len(tokens))
            for layer, cache in enumerate(caches):
                block = kept[layer] if layer in kept else weights.block(layer, dtype)
                if (len(kept) + 1) * block_bytes <= limit_bytes:
                    kept[layer] = block
                mask = attention_mask(hidden.shape[1], None, spec.windows[layer]) if start == 0 else None
                hidden = block_forward(spec, block, hidden, cos[now], sin[now], mask=mask, cache=cache)
            logits = rms_norm(hidden[0, -1], norm, spec.rms_norm_eps) @ head.t()
            if not bool(torch.isfinite(logits).all()):
                raise GateFailed("The quantized model's logits are not finite: it cannot be used.")
            start = len(tokens)
            tokens.append(int(logits.argmax()))
            progress.advance()
    return tokens[len(prompt) :]


def _repeats(tokens: list[int]) -> bool:
    """Whether the tokens end in copies of one to sixteen of them: in the last half, or in two copies where these are longer."""
    half = len(tokens) // 2
    tails = ((p, tokens[-max(half, 2 * p) :]) for p in range(1, min(_LONGEST_PERIOD, half) + 1))
    return any(tail[p:] == tail[:-p] for p, tail in tails)
