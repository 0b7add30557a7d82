"""The forward pass of one decoder block in plain torch: what calibration and scoring stream through.

Written out rather than taken from a model library so that one block's weights are all that is in memory, and cut where
calibration needs it: each function returns what the next set of linears reads. Same arithmetic as transformers: norms
and rotary angles in float32, products in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qtk.models.spec import ModelSpec

_TILE = 128  # queries of one tile of attention
_FEW_ROWS = 16


@dataclass
class KeyValues:
    """One block's keys and values of the tokens so far, [batch, kv_heads, tokens, head_dim] (None before the first ones),
    of which the last `window` are kept (None: all). After the first call, tokens come one by one."""

    window: int | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds those of new tokens; returns what their queries may look at (the first tokens: all, under a mask)."""
        first = self.k is None or self.v is None
        if self.k is not None and self.v is not None:
            assert k.shape[2] == 1, "one token at a time"
            k, v = torch.cat((self.k, k), 2), torch.cat((self.v, v), 2)
        kept = slice(0 if self.window is None else -self.window, None)
        self.k, self.v = k[:, :, kept], v[:, :, kept]
        return (k, v) if first else (self.k, self.v)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in float32, result in x's dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim] (halves convention) by cos, sin [tokens, head_dim / 2]."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_mask(
    tokens: int, keep: torch.Tensor | None, window: int | None, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """Boolean mask (True = may look) for right-padded rows, or None where plain causal attention says it all.

    keep: [batch, tokens] bool, False at padding. Returns [batch or 1, 1, tokens, tokens].
    """
    if keep is None and (window is None or window >= tokens):
        return None
    position = torch.arange(tokens, device=device)
    mask = position[None, :] <= position[:, None]
    if window is not None:
        mask = mask & (position[None, :] > position[:, None] - window)
    mask = mask[None, None]
    if keep is not None:
        # A padded query looks at itself, so that its softmax has something to hold; nobody reads its result.
        mask = (mask & keep[:, None, None, :]) | torch.eye(tokens, dtype=torch.bool, device=device)
    return mask


def block_forward(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor],
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    cache: KeyValues | None = None,
) -> torch.Tensor:
    """One block applied to hidden [batch, tokens, hidden_size]; returns the same shape and dtype.

    weights: names below the block's prefix ("self_attn.q_proj.weight", ...) in hidden's dtype.
    cos, sin: [tokens, head_dim / 2] float32, of these tokens' positions. mask: from `attention_mask`. cache: the tokens
    before these, if any; these are added to it.
    """
    x = attention_input(spec, weights, hidden)
    attended = attention_output(spec, weights, x, cos, sin, mask=mask, cache=cache)
    hidden = hidden + linear(weights, "self_attn.o_proj", attended)
    return hidden + linear(weights, "mlp.down_proj", mlp_hidden(weights, mlp_input(spec, weights, hidden)))


def linear(weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """The linear `name` of the block applied to x [..., in] -> [..., out]."""
    return apply_weight(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def apply_weight(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in], weight [out, in] -> [..., out].

    For a few rows, whose time is that of reading the weight, the weight stands on the left: four rows then take as long as one, and
    four times as long on the right (docs/benchmarks.md). In other dtypes than float32 that was not measured.
    """
    if x.numel() > _FEW_ROWS * x.shape[-1] or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    y = (weight @ x.reshape(-1, x.shape[-1]).t()).t().reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def attention_input(spec: ModelSpec, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """What q, k and v read: the first norm of hidden [batch, tokens, hidden_size]."""
    return rms_norm(hidden, weights["input_layernorm.weight"], spec.rms_norm_eps)


def attention_output(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    cache: KeyValues | None = None,
) -> torch.Tensor:
    """What o reads: q, k, v of x (from `attention_input`), rotary, attention. [batch, tokens, heads * head_dim]."""
    batch, tokens, _ = x.shape

    def heads(name: str, count: int) -> torch.Tensor:
        y = linear(weights, f"self_attn.{name}_proj", x).view(batch, tokens, count, spec.head_dim)
        if spec.qk_norm and name != "v":
            y = rms_norm(y, weights[f"self_attn.{name}_norm.weight"], spec.rms_norm_eps)
        return y.transpose(1, 2)

    q = rotate(heads("q", spec.num_heads), cos, sin)
    k = rotate(heads("k", spec.num_kv_heads), cos, sin)
    v = heads("v", spec.num_kv_heads)
    if cache is not None:
        k, v = cache.append(k, v)
    y = _attention(q, k, v, mask)
    return y.transpose(1, 2).reshape(batch, tokens, spec.num_heads * spec.head_dim)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of q [batch, heads, tokens, head_dim] over k, v [batch, kv_heads, ...], causal where mask is None."""
    repeat = q.shape[1] // k.shape[1]
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] == k.shape[2]:
        return _tiled_attention(q, k, v, mask, repeat)
    if repeat > 1:  # expanded by hand: torch's enable_gqa falls back to a slow path on the CPU
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)


def _tiled_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, repeat: int
) -> torch.Tensor:
    """The same by tiles of queries, each over the keys up to its end, the heads of a group as one product.

    On the CPU in bf16 that takes two fifths of the time of torch's own kernel.
    """
    batch, heads, tokens, head_dim = q.shape
    groups = batch * heads // repeat
    q, k, v = q.reshape(groups, repeat, tokens, head_dim), k.flatten(0, 1), v.flatten(0, 1)
    y = torch.empty_like(q)
    future = torch.full((_TILE, _TILE), -torch.inf, dtype=q.dtype).triu_(1)
    for start in range(0, tokens, _TILE):
        end = min(start + _TILE, tokens)
        tile = q[:, :, start:end].reshape(groups, repeat * (end - start), head_dim)
        scores = torch.baddbmm(tile.new_zeros(()), tile, k[:, :end].transpose(1, 2), beta=0, alpha=head_dim**-0.5)
        scores = scores.view(batch, heads, end - start, end)
        if mask is None:
            scores[..., start:] += future[: end - start, : end - start]
        else:
            scores = scores.masked_fill_(~mask[:, :, start:end, :end], -torch.inf)
        weights = scores.softmax(-1).view(groups, repeat * (end - start), end)
        y[:, :, start:end] = (weights @ v[:, :end]).view(groups, repeat, end - start, head_dim)
    return y.view(batch, heads, tokens, head_dim)


def mlp_input(spec: ModelSpec, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """What gate and up read: the second norm of hidden after attention."""
    return rms_norm(hidden, weights["post_attention_layernorm.weight"], spec.rms_norm_eps)


def mlp_hidden(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What down reads: silu(gate x) * up x, [batch, tokens, intermediate_size]."""
    return F.silu(linear(weights, "mlp.gate_proj", x)) * linear(weights, "mlp.up_proj", x)
