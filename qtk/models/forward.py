"""The forward pass of one decoder block in plain torch: what calibration and scoring stream through.

Written out rather than taken from a model library so that one block's weights are all that is in memory, linears that
share an input run as one product, and whoever calibrates sees each linear's input (`tap`). Same arithmetic as
transformers: norms and rotary angles in float32, products in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from qtk.models.spec import ModelSpec, Reads

Tap = Callable[[Reads, torch.Tensor], None]


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
    tap: Tap | None = None,
) -> torch.Tensor:
    """One block applied to hidden [batch, tokens, hidden_size]; returns the same shape and dtype.

    weights: names below the block's prefix ("self_attn.q_proj.weight", ...) in hidden's dtype.
    cos, sin: [tokens, head_dim / 2] float32. mask: from `attention_mask`. tap is called with what each set of linears
    reads and its input [batch, tokens, in_features].
    """
    hidden = hidden + attention(spec, weights, hidden, cos, sin, mask=mask, tap=tap)
    return hidden + mlp(spec, weights, hidden, tap=tap)


def attention(
    spec: ModelSpec,
    weights: Mapping[str, torch.Tensor],
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    tap: Tap | None = None,
) -> torch.Tensor:
    """The attention half of a block: norm, q/k/v, rotary, attention, output product. Returns what is added to hidden."""
    batch, tokens, _ = hidden.shape
    x = rms_norm(hidden, weights["input_layernorm.weight"], spec.rms_norm_eps)
    if tap:
        tap("attention_input", x)

    def heads(name: str, count: int) -> torch.Tensor:
        y = F.linear(x, weights[f"self_attn.{name}_proj.weight"], weights.get(f"self_attn.{name}_proj.bias"))
        y = y.view(batch, tokens, count, spec.head_dim)
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
    y = y.transpose(1, 2).reshape(batch, tokens, spec.num_heads * spec.head_dim)
    if tap:
        tap("attention_output", y)
    return F.linear(y, weights["self_attn.o_proj.weight"], weights.get("self_attn.o_proj.bias"))


def mlp(
    spec: ModelSpec, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor, *, tap: Tap | None = None
) -> torch.Tensor:
    """The gated MLP half of a block: norm, gate and up, silu, down. Returns what is added to hidden."""
    x = rms_norm(hidden, weights["post_attention_layernorm.weight"], spec.rms_norm_eps)
    if tap:
        tap("mlp_input", x)
    gate = F.linear(x, weights["mlp.gate_proj.weight"], weights.get("mlp.gate_proj.bias"))
    up = F.linear(x, weights["mlp.up_proj.weight"], weights.get("mlp.up_proj.bias"))
    y = F.silu(gate) * up
    if tap:
        tap("mlp_hidden", y)
    return F.linear(y, weights["mlp.down_proj.weight"], weights.get("mlp.down_proj.bias"))
