"""Reads a quantized checkpoint back from its files, as whoever deploys it will, and lets it generate a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from qtk.calibration.rows import TokenRows
from qtk.errors import GateFailed, InputError, listing
from qtk.machine import fast_matmul_dtype
from qtk.models.forward import block_forward, rms_norm
from qtk.models.spec import EMBEDDING
from qtk.models.tokenizer import TextTokenizer, has_tokenizer
from qtk.progress import Progress, note
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear

_NEW_TOKENS = 32
_PROMPT_TOKENS = 16
_LONGEST_PERIOD = 4  # a text that ends in copies of so few tokens is a repetition


class ReadBack(BaseModel):
    """What was found in the written files. bits_per_weight: of the quantized linears, scales and zero points included;
    text: greedy continuation of calibration text (its ids where
    there is no tokenizer); repeats: it ends in a loop, where the float model's does not."""

    model_config = ConfigDict(frozen=True)

    linears: int
    bits_per_weight: float
    text: str
    repeats: bool


def read_back(directory: Path, reference: ModelWeights, rows: TokenRows | None, *, limit_bytes: int) -> ReadBack:
    """Checks every quantized linear in `directory`, and generates 32 tokens.

    reference: the float model, asked for its own 32 tokens where these end in a repetition: some texts invite one.
    rows: calibration rows, whose first is continued (None: "def " is). limit_bytes: what the blocks may take in memory to
    be kept between tokens; larger models are read anew for each.
    Raises GateFailed, naming every linear concerned, when codes are not in range, a scale is no finite float16, or logits are not
    finite.
    """
    weights = ModelWeights.open(directory)
    with closing(weights.checkpoint):
        count, bits = _check_linears(weights)
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


def _check_linears(weights: ModelWeights) -> tuple[int, float]:
    """(linears, mean bits per weight of those quantized)."""
    assert weights.scheme is not None
    offenders, count, elements, stored = [], 0, 0, 0
    quantized = {name: scheme for name, scheme in weights.scheme.modules.items() if scheme.bits < 16}
    for name, scheme in quantized.items():
        try:
            linear = weights.linear(name)
        except InputError as error:
            offenders.append(f"{name}: {error}")
            continue
        if not isinstance(linear, QuantizedLinear) or linear.bits != scheme.bits:
            offenders.append(f"{name}: not stored in {scheme.bits} bits")
            continue
        if int(linear.codes.max()) >= 2**linear.bits:
            offenders.append(f"{name}: codes beyond {linear.bits} bits")
        if not bool(torch.isfinite(linear.scales.to(torch.float16)).all()):
            offenders.append(f"{name}: scales that are no finite float16 numbers")
        count += 1
        elements += linear.codes.numel()
        stored += sum(weights.checkpoint.info(n).nbytes for n in weights.checkpoint.names if n.startswith(f"{name}."))
    if offenders:
        raise GateFailed(f"The files just written do not hold what they should:\n{listing(offenders)}")
    return count, 8 * stored / max(elements, 1)


def _generate(weights: ModelWeights, prompt: list[int], limit_bytes: int) -> list[int]:
    """32 tokens after the prompt, greedily, end of text ignored. The whole text goes through the blocks for each token:
    with so few, reading weights is what costs."""
    spec, dtype = weights.spec, fast_matmul_dtype()
    block_bytes = dtype.itemsize * sum(x.out_features * x.in_features for x in spec.linears())
    kept: dict[int, Mapping[str, torch.Tensor]] = {}
    norm, head = weights.final_norm(), weights.lm_head(dtype)
    embedding = weights.checkpoint.tensor(EMBEDDING, finite=True)
    tokens = list(prompt)
    with Progress("read back", _NEW_TOKENS, "token") as progress:
        for _ in range(_NEW_TOKENS):
            hidden = F.embedding(torch.tensor([tokens]), embedding).to(dtype)
            cos, sin = spec.rope.tables(spec.head_dim, len(tokens))
            for layer in range(spec.num_layers):
                block = kept[layer] if layer in kept else weights.block(layer, dtype)
                if (len(kept) + 1) * block_bytes <= limit_bytes:
                    kept[layer] = block
                hidden = block_forward(spec, block, hidden, cos, sin)
            logits = rms_norm(hidden[0, -1], norm, spec.rms_norm_eps) @ head.t()
            if not bool(torch.isfinite(logits).all()):
                raise GateFailed("The quantized model's logits are not finite: it cannot be used.")
            tokens.append(int(logits.argmax()))
            progress.advance()
    return tokens[len(prompt) :]


def _repeats(tokens: list[int]) -> bool:
    """Whether the last half is copies of one to four tokens."""
    tail = tokens[len(tokens) // 2 :]
    return any(tail[p:] == tail[:-p] for p in range(1, _LONGEST_PERIOD + 1))
