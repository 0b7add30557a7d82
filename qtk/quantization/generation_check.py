"""Lets a model generate a few texts greedily, block by block from its files, and notices those that end in a loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qtk.calibration.rows import TokenRows
from qtk.errors import GateFailed
from qtk.machine import fast_matmul_dtype
from qtk.models.forward import KeyValues, apply_weight, attention_mask, block_forward, rms_norm
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights

_NEW_TOKENS = 32
_PROMPTS = 4  # generated from side by side, in the time of one: a single text may end in a loop by chance
_PROMPT_TOKENS = 64  # after 16, three texts in ten invited the float SmolLM2 to a loop; after 64, fewer than one
_LONGEST_PERIOD = 16  # a text that ends in copies of so few tokens is a repetition


@dataclass(frozen=True)
class LoopCount:
    """How many texts of the quantized model end in a loop, and whether that is worse than the float model does."""

    loops: int
    repeats: bool


def count_loops(texts: list[list[int]], of_float: Callable[[], list[list[int]]]) -> LoopCount:
    """texts: token ids that the quantized model generated. of_float: the float model's after the same prompts, asked for only
    where more than half of `texts` end in a loop: some prompts invite one."""
    loops = sum(map(ends_in_loop, texts))
    most = len(texts) / 2
    return LoopCount(loops, loops > most and sum(map(ends_in_loop, of_float())) <= most)


def ends_in_loop(tokens: list[int]) -> bool:
    """Whether the tokens end in copies of one to sixteen of them: in the last half, or in two copies where these are longer."""
    half = len(tokens) // 2
    tails = ((p, tokens[-max(half, 2 * p) :]) for p in range(1, min(_LONGEST_PERIOD, half) + 1))
    return any(tail[p:] == tail[:-p] for p, tail in tails)


def text_prompts(rows: TokenRows) -> list[list[int]]:
    """The beginnings, alike in length, of evenly spaced rows."""
    count = len(rows.lengths)
    chosen = rows.pick(
        [index * count // _PROMPTS for index in range(_PROMPTS)] if count > _PROMPTS else list(range(count))
    )
    return chosen.tokens[:, : min(_PROMPT_TOKENS, int(chosen.lengths.min()))].tolist()


def continue_greedily(weights: ModelWeights, prompts: list[list[int]], limit_bytes: int) -> list[list[int]]:
    """32 tokens after each of the prompts, which are alike in length, end of text ignored.

    limit_bytes: what the blocks may take in memory to be kept between tokens; those beyond it are read anew for each token,
    from what the system still holds of the files. Raises GateFailed for logits that are not finite.
    """
    spec, dtype = weights.spec, fast_matmul_dtype()
    block_bytes = dtype.itemsize * sum(x.out_features * x.in_features for x in spec.linears())
    kept: dict[int, Mapping[str, torch.Tensor]] = {}
    caches = [KeyValues(window) for window in spec.windows]
    norm, head = weights.final_norm(), weights.lm_head(dtype)
    tokens, start, end = torch.tensor(prompts), 0, len(prompts[0])
    cos, sin = (table.to(dtype) for table in spec.rope.tables(spec.head_dim, end + _NEW_TOKENS))
    with Progress("generate", _NEW_TOKENS, "tokens") as progress:
        for _ in range(_NEW_TOKENS):
            now = slice(start, tokens.shape[1])
            hidden = weights.embed(tokens[:, now], dtype)
            for layer, cache in enumerate(caches):
                block = kept[layer] if layer in kept else weights.block(layer, dtype)
                if (len(kept) + 1) * block_bytes <= limit_bytes:
                    kept[layer] = block
                mask = attention_mask(hidden.shape[1], None, spec.windows[layer]) if start == 0 else None
                hidden = block_forward(spec, block, hidden, cos[now], sin[now], mask=mask, cache=cache)
            logits = apply_weight(rms_norm(hidden[:, -1], norm, spec.rms_norm_eps), head)
            if not bool(torch.isfinite(logits).all()):
                raise GateFailed("The quantized model's logits are not finite: it cannot be used.")
            start = now.stop
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), 1)
            progress.advance()
    return tokens[:, end:].tolist()
