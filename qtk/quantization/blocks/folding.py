"""Folds AWQ's column scales into what feeds the columns, so that the checkpoint stays a plain one.

Each set of linears has something that feeds it and takes the inverse of its scales: q/k/v the first norm, o the rows of
v, gate/up the second norm, down the rows of up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qtk.models.spec import ModelSpec
from qtk.quantization.algorithms.awq import column_scale
from qtk.quantization.blocks.quantized import FloatBlock
from qtk.quantization.blocks.streams import Statistics

# What a set reads -> the module whose output is divided by the set's scales.
FED_BY = {
    "attention_input": "input_layernorm",
    "attention_output": "self_attn.v_proj",
    "mlp_input": "post_attention_layernorm",
    "mlp_hidden": "mlp.up_proj",
}


@dataclass(frozen=True)
class Fold:
    """columns: [in] float32, by which the set's columns were multiplied. outputs: by which the feeder's outputs were divided.
    Both are ones where a linear concerned stays in float. weights: the tensors that changed, float32, by name."""

    columns: torch.Tensor
    outputs: torch.Tensor
    weights: Mapping[str, torch.Tensor]


def fold_scales(
    spec: ModelSpec, block: FloatBlock, reads: str, scaled: Mapping[str, torch.Tensor], statistics: Statistics
) -> Fold:
    """Scales the columns of the set that reads `reads`, and its feeder's output to match.

    scaled: the block's tensors by name, float32, with the folds that were made before this one. The block itself says
    in which dtype each tensor is stored, and which linears stay in float.
    """
    feeder = FED_BY[reads]
    members = [linear for linear in spec.linears() if linear.reads == reads]
    concerned = [block.schemes[m.name] for m in members]
    concerned += [block.schemes[feeder]] if feeder in block.schemes else []
    channels = _feeding_channels(spec, reads, members[0].in_features, statistics.H.device)
    per_channel = torch.ones(int(channels.max()) + 1, device=channels.device)
    if not all(scheme.quantized for scheme in concerned):
        return Fold(per_channel[channels], per_channel, {})
    W = torch.cat([scaled[f"{m.name}.weight"] for m in members])
    per_channel[channels] = column_scale(W, statistics.H, concerned[0], shared=channels)
    feeding = [name for name in (f"{feeder}.weight", f"{feeder}.bias") if name in scaled]
    for name in feeding:
        if scaled[name].ndim == 1:
            per_channel = _storable(per_channel, scaled[name], block.weights[name].dtype)
    columns = per_channel[channels]
    changed = {name: scaled[name] * columns for name in (f"{m.name}.weight" for m in members)}
    for name in feeding:
        tensor = changed.get(name, scaled[name])
        changed[name] = tensor / (per_channel[:, None] if tensor.ndim == 2 else per_channel)
    return Fold(columns, per_channel, changed)


def _feeding_channels(spec: ModelSpec, reads: str, in_features: int, device: torch.device) -> torch.Tensor:
    """[in] the feeder's channel behind each input: several heads of queries read one head of v."""
    channels = torch.arange(in_features, device=device)
    if reads != "attention_output":
        return channels
    head, within = channels // spec.head_dim, channels % spec.head_dim
    return head // (spec.num_heads // spec.num_kv_heads) * spec.head_dim + within


def _storable(scales: torch.Tensor, vector: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scales nearest to `scales` by which `vector` (a norm, a bias) can be divided without an error from rounding the
    result to `dtype`: what the rounded result stands for. All [channels]."""
    stored = (vector / scales).to(dtype).float()
    exact = vector / stored
    # Zeros and what underflows say nothing about a scale.
    return torch.where(torch.isfinite(exact) & (exact > 0), exact, scales)
