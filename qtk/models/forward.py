"""The forward pass of one decoder block in plain torch: what calibration and scoring stream through.

Written out rather than taken from a model library so that one block's weights are all that is in memory, and cut where
calibration needs it: each function returns what the next set of linears reads. Same arithmetic as transformers: norms
and rotary angles in float32, products in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from qtk.models.spec import ModelSpec


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in float32, result in x's dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim] (halves convention) by cos, sin [tokens, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


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
) -> torch.Tensor:
    """One block applied to hidden [batch, tokens, hidden_size]; returns the same shape and dtype.

    weights: names below the block's prefix ("self_attn.q_proj.weight", ...) in hidden's dtype.
    cos, sin: [tokens, head_dim / 2] float32. mask: from `attention_mask`.
    """
    x = attention_input(spec, weights, hidden)
    hidden = hidden + linear(weights, "self_attn.o_proj", attention_output(spec, weights, x, cos, sin, mask=mask))
    return hidden + linear(weights, "mlp.down_proj", mlp_hidden(weights, mlp_input(spec, weights, hidden)))


def linear(weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """The linear `name` of the block applied to x [..., in] -> [..., out]."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


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
    repeat = spec.num_heads // spec.num_kv_heads
    if repeat > 1:  # expanded by hand: torch's enable_gqa falls back to a slow path on the CPU
        k = k.repeat_interleave(repeat, dim=1)
        v = v.repeat_interleave(repeat, dim=1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and tokens > 1)
    return y.transpose(1, 2).reshape(batch, tokens, spec.num_heads * spec.head_dim)


def mlp_input(spec: ModelSpec, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """What gate and up read: the second norm of hidden after attention."""
    return rms_norm(hidden, weights["post_attention_layernorm.weight"], spec.rms_norm_eps)


def mlp_hidden(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What down reads: silu(gate x) * up x, [batch, tokens, intermediate_size]."""
    return F.silu(linear(weights, "mlp.gate_proj", x)) * linear(weights, "mlp.up_proj", x)
