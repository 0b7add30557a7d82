"""AutoAWQ's search as the paper (Lin et al., 2023, arXiv:2306.00978) and the archived project describe it, in float32.

AutoAWQ itself needs a transformers of 2025 and kernels for a GPU. What it decides is this: for each set of linears one
scale a column, s = mean|X|^a / mean|W|^(1-a) with the best of 20 exponents a, judged by the output of the module that
holds the set (attention for q/k/v, the whole MLP for gate/up), then for every linear but q and k the narrowest range
of each group, of ten from 1.0 to 0.55, that changes the outputs of that group least. Everything sees the float model.
The weights come out rounded and in float: whoever scores them needs no container.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

GRID = 20
MOST_SHRUNK = 0.5
CLIP_TOKENS = 512  # of each linear's inputs, evenly spread, for the search of ranges
ROWS_AT_ONCE = 4


def rounded(W: Tensor, group_size: int, symmetric: bool) -> Tensor:
    """W [out, in] rounded to the nearest of 16 values between the extremes of each group."""
    groups = W.view(-1, group_size)
    if symmetric:
        scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-5) / 7
        return ((groups / scale).round().clamp(-8, 7) * scale).view_as(W)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low).clamp_min(1e-5) / 15
    zero = (-(low / scale).round()).clamp(0, 15)
    return (((groups / scale).round() + zero).clamp(0, 15).sub_(zero) * scale).view_as(W)


class _Caught(Exception):
    """The first block was reached: its inputs are known."""


def _first_inputs(model: Any, rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What the first block gets for all rows, and its other arguments, which are alike for rows of one length."""
    hidden: list[Tensor] = []
    others: dict[str, Any] = {}

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0] if args else kwargs["hidden_states"])
        others.update({k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values")})
        raise _Caught

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in rows:
        with contextlib.suppress(_Caught):
            model(input_ids=row[None], use_cache=False)
    hook.remove()
    others["use_cache"] = False
    return torch.cat(hidden), others


def _in_chunks(run: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    return torch.cat([run(chunk) for chunk in X.split(ROWS_AT_ONCE)])


def _run_and_record(block: nn.Module, X: Tensor, others: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The block's outputs for X [rows, length, hidden], and what each of its linears read."""
    seen: dict[str, list[Tensor]] = {name: [] for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        block.get_submodule(name).register_forward_pre_hook(lambda _, args, seen=seen[name]: seen.append(args[0]))
        for name in seen
    ]
    outputs = _in_chunks(lambda x: _tensor(block(x, **others)), X)
    for hook in hooks:
        hook.remove()
    return outputs, {name: torch.cat(parts) for name, parts in seen.items()}


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _best_scale(
    linears: list[nn.Linear], X: Tensor, run: Callable[[Tensor], Tensor], group_size: int, symmetric: bool
) -> Tensor:
    """[in]: the scale of each column of the set `linears`, whose input is X and whose outputs are judged through `run`."""
    W = torch.cat([linear.weight for linear in linears])
    groups = W.view(-1, group_size).abs()
    w_mean = (groups / (groups.amax(1, keepdim=True) + 1e-6)).view_as(W).mean(0)
    x_mean = X.abs().mean((0, 1))
    wanted = _in_chunks(run, X)
    float_weights = [linear.weight.data for linear in linears]
    best, least = torch.ones_like(x_mean), float("inf")
    for step in range(GRID):
        ratio = step / GRID
        s = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + 1e-4)).clamp_min(1e-4)
        s = s / (s.max() * s.min()).sqrt()
        for linear, weight in zip(linears, float_weights, strict=True):
            linear.weight.data = rounded(weight * s, group_size, symmetric) / s
        loss = float((_in_chunks(run, X) - wanted).square().mean())
        if loss < least:
            best, least = s, loss
    for linear, weight in zip(linears, float_weights, strict=True):
        linear.weight.data = weight
    return best


def _best_range(W: Tensor, X: Tensor, group_size: int, symmetric: bool) -> Tensor:
    """W clipped to the range of each group that keeps the group's share of the outputs for X [tokens, in] best."""
    X = X[:: max(1, len(X) // CLIP_TOKENS)].view(-1, W.shape[1] // group_size, group_size).transpose(0, 1)
    clipped = []
    for rows in W.split(64):
        groups = rows.view(len(rows), -1, group_size)
        largest = groups.abs().amax(2, keepdim=True)
        wanted = torch.einsum("gtc,ogc->ogt", X, groups)
        best, least = largest, torch.full_like(largest, float("inf"))
        for step in range(int(MOST_SHRUNK * GRID)):
            limit = largest * (1 - step / GRID)
            trial = rounded(groups.clamp(-limit, limit).reshape(rows.shape), group_size, symmetric).view_as(groups)
            loss = (torch.einsum("gtc,ogc->ogt", X, trial) - wanted).square().mean(2, keepdim=True)
            better = loss < least
            best, least = torch.where(better, limit, best), torch.where(better, loss, least)
        clipped.append(groups.clamp(-best, best).reshape(rows.shape))
    return torch.cat(clipped)


@torch.no_grad()
def quantize(model: Any, rows: Tensor, group_size: int, symmetric: bool) -> None:
    """Rounds the linears of a Llama-like float32 transformers model in place. rows: [rows, length] int64 token ids."""
    X, others = _first_inputs(model, rows)
    for block in model.model.layers:
        outputs, inputs = _run_and_record(block, X, others)
        attention, mlp = block.self_attn, block.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        sets: list[tuple[list[nn.Linear], nn.Module, str, Callable[[Tensor], Tensor]]] = [
            (
                qkv,
                block.input_layernorm,
                "self_attn.q_proj",
                lambda x, a=attention: _tensor(a(hidden_states=x, **others)),
            ),
            ([mlp.gate_proj, mlp.up_proj], block.post_attention_layernorm, "mlp.gate_proj", mlp),
            ([mlp.down_proj], mlp.up_proj, "mlp.down_proj", mlp.down_proj),
        ]
        # With grouped queries v has fewer channels than o has inputs, and AutoAWQ leaves o as it is.
        if attention.v_proj.weight.shape == attention.o_proj.weight.shape:
            sets.insert(1, ([attention.o_proj], attention.v_proj, "self_attn.o_proj", attention.o_proj))
        for linears, feeder, name, run in sets:
            s = _best_scale(linears, inputs[name], run, group_size, symmetric)
            feeder.weight.data /= s[:, None] if feeder.weight.ndim == 2 else s
            if getattr(feeder, "bias", None) is not None:
                feeder.bias.data /= s
            for linear in linears:
                linear.weight.data *= s
            for other in inputs:
                if block.get_submodule(other) in linears:
                    inputs[other] = inputs[other] / s
        for name, X_linear in inputs.items():
            linear = block.get_submodule(name)
            W = linear.weight.data
            if not name.endswith(("q_proj", "k_proj")):
                W = _best_range(W, X_linear.flatten(0, 1), group_size, symmetric)
            linear.weight.data = rounded(W, group_size, symmetric)
        X = outputs
