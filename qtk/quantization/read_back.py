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
from qtk.quantization.formats.base import Format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

_NEW_TOKENS = 32
_PROMPTS = 4  # generated from side by side, in the time of one: a single text may end in a loop by chance
_PROMPT_TOKENS = 64  # after 16, three texts in ten invited the float SmolLM2 to a loop; after 64, fewer than one
_LONGEST_PERIOD = 16  # a text that ends in copies of so few tokens is a repetition
_MOST = 1000  # offenders named in one message


class ReadBack(BaseModel):
    """What was found in the written files. bits_per_weight: of the quantized linears, scales and zero points included.
    texts: continuations of calibration text that were generated greedily, of which `loops` end in a loop; text: the first
    of those that do not, if there is one (its ids where there is no tokenizer). repeats: more than half of them end in a
    loop, where of the float model's no more than half do."""

    model_config = ConfigDict(frozen=True)

    linears: int
    bits_per_weight: float
    texts: int
    loops: int
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
    """Checks every tensor in `directory` against the intended scheme, and generates 32 tokens after each of a few texts.

    reference: the float model, asked for its own where most of these end in a loop: some texts invite one.
    rows: calibration rows, four of which are continued (None: "def " is). limit_bytes: what the blocks may take in memory to
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
        prompts = _prompts(rows) if rows is not None else [tokenizer.encode("def ") if tokenizer else [0]]
        texts = _generate(weights, prompts, limit_bytes)
    loops = sum(map(_repeats, texts))
    repeats = loops > len(texts) / 2
    if repeats:
        repeats = sum(map(_repeats, _generate(reference, prompts, limit_bytes))) <= len(texts) / 2
    if repeats:
        note(
            f"WARNING: {loops} of {len(texts)} texts that the quantized model generated end in a loop, most of the float "
            "model's do not."
        )
    shown = next((text for text in texts if not _repeats(text)), texts[0])
    text = tokenizer.decode(shown) if tokenizer else f"tokens {' '.join(map(str, shown))}"
    return ReadBack(
        linears=count, bits_per_weight=round(bits, 3), texts=len(texts), loops=loops, text=text, repeats=repeats
    )


def _prompts(rows: TokenRows) -> list[list[int]]:
    """The beginnings, alike in length, of evenly spaced rows."""
    count = len(rows.lengths)
    chosen = rows.pick(
        [index * count // _PROMPTS for index in range(_PROMPTS)] if count > _PROMPTS else list(range(count))
    )
    return chosen.tokens[:, : min(_PROMPT_TOKENS, int(chosen.lengths.min()))].tolist()


def _check_linears(weights: ModelWeights, intended: QuantizationScheme, reference: ModelWeights) -> tuple[int, float]:
    """(linears, mean bits per weight of those quantized)."""
    if weights.format is None:
        raise GateFailed("The files just written are those of a float model: their config.json names no quantization.")
    offenders, count, elements, stored = [], 0, 0, 0
    offenders += _unwritten_floats(weights, reference)
    with Progress("read back", len(intended.modules), "linear") as progress:
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


def _otherwise_stored(found: LinearScheme, intended: LinearScheme) -> str:
    """How the scheme that the files tell differs from the intended one; empty where it does not."""
    if found.quantized != intended.quantized:
        return f"not stored in {intended.bits} bits"
    if intended.quantized and (found.bits, found.group_size) != (intended.bits, intended.group_size):
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


def _generate(weights: ModelWeights, prompts: list[list[int]], limit_bytes: int) -> list[list[int]]:
    """32 tokens after each of the prompts, which are alike in length, greedily, end of text ignored."""
    spec, dtype = weights.spec, fast_matmul_dtype()
    block_bytes = dtype.itemsize * sum(x.out_features * x.in_features for x in spec.linears())
    kept: dict[int, Mapping[str, torch.Tensor]] = {}
    caches = [KeyValues(window) for window in spec.windows]
    norm, head = weights.final_norm(), weights.lm_head(dtype)
    tokens, start, end = torch.tensor(prompts), 0, len(prompts[0])
    cos, sin = (table.to(dtype) for table in spec.rope.tables(spec.head_dim, end + _NEW_TOKENS))
    with Progress("generate", _NEW_TOKENS, "token") as progress:
        for _ in range(_NEW_TOKENS):
            now = slice(start, tokens.shape[1])
            hidden = weights.embed(tokens[:, now], dtype)
            for layer, cache in enumerate(caches):
                block = kept[layer] if layer in kept else weights.block(layer, dtype)
                if (len(kept) + 1) * block_bytes <= limit_bytes:
                    kept[layer] = block
                mask = attention_mask(hidden.shape[1], None, spec.windows[layer]) if start == 0 else None
                hidden = block_forward(spec, block, hidden, cos[now], sin[now], mask=mask, cache=cache)
            logits = rms_norm(hidden[:, -1], norm, spec.rms_norm_eps) @ head.t()
            if not bool(torch.isfinite(logits).all()):
                raise GateFailed("The quantized model's logits are not finite: it cannot be used.")
            start = now.stop
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), 1)
            progress.advance()
    return tokens[:, end:].tolist()


def _repeats(tokens: list[int]) -> bool:
    """Whether the tokens end in copies of one to sixteen of them: in the last half, or in two copies where these are longer."""
    half = len(tokens) // 2
    tails = ((p, tokens[-max(half, 2 * p) :]) for p in range(1, min(_LONGEST_PERIOD, half) + 1))
    return any(tail[p:] == tail[:-p] for p, tail in tails)
