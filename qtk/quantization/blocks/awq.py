"""Quantizes one decoder block by AWQ: the statistics of every set are taken on the float model, then scales are folded.

Each set of linears has something that feeds it and takes the inverse of its scales: q/k/v the first norm, o the rows of
v, gate/up the second norm, down the rows of up. So the checkpoint stays a plain one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from qtk.models.spec import ModelSpec
from qtk.quantization.algorithms.awq import awq, column_scale
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.layer_log import layer_records
from qtk.quantization.blocks.quantized import QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, Rows, Statistics, Stream
from qtk.quantization.scheme_model import LinearScheme

# What a set reads -> the module whose output is divided by the set's scales.
_FED_BY = {
    "attention_input": "input_layernorm",
    "attention_output": "self_attn.v_proj",
    "mlp_input": "post_attention_layernorm",
    "mlp_hidden": "mlp.up_proj",
}


class AwqBlocks(BlockStreams):
    """Quantizes block after block, from the statistics of the float stream."""

    def __init__(
        self,
        spec: ModelSpec,
        rows: Rows,
        budget: ActivationBudget,
        device: torch.device,
        float_stream: Stream,
    ) -> None:
        super().__init__(spec, rows, budget, device)
        self.float_stream = float_stream
        self.streams = [float_stream]

    def quantize(
        self, layer: int, weights: dict[str, torch.Tensor], schemes: Mapping[str, LinearScheme]
    ) -> QuantizedBlock:
        """Arguments and result as for GptqBlocks.quantize."""
        start = time.monotonic()
        dtype = self.float_stream.hidden.dtype
        self.float_stream.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        statistics = self._run_float(layer)
        scaled = {name: weight.float() for name, weight in weights.items()}
        stored_as = {name: weight.dtype for name, weight in weights.items()}
        columns, rows = {}, {}
        for reads, feeder in _FED_BY.items():
            columns[reads], rows[feeder] = self._fold(reads, feeder, scaled, stored_as, schemes, statistics[reads])
        quantized = [linear for linear in self.spec.linears() if schemes[linear.name].quantized]
        shared_seconds = (time.monotonic() - start) / max(len(quantized), 1)
        block = QuantizedBlock({})
        for linear in quantized:
            start = time.monotonic()
            scheme, found, s = schemes[linear.name], statistics[linear.reads], columns[linear.reads]
            W, H = scaled[f"{linear.name}.weight"], found.H / (s[:, None] * s)
            result = awq(W, H, scheme)
            block.linears[linear.name] = result
            unscaled = result.dequantize() / s
            if linear.name in rows:
                unscaled *= rows[linear.name][:, None]
            block.records += layer_records(
                self.spec.block_prefix(layer),
                [linear],
                scheme,
                weights[f"{linear.name}.weight"].float(),
                result,
                found,
                method="awq",
                damping=None,
                seconds=shared_seconds + time.monotonic() - start,
                dtype=dtype,
                unscaled=unscaled,
            )
        changed = {
            name: w.to(weights[name].dtype) for name, w in scaled.items() if not torch.equal(w, weights[name].float())
        }
        block.floats = {n: w for n, w in changed.items() if n.removesuffix(".weight") not in block.linears}
        return block

    def _run_float(self, layer: int) -> dict[str, Statistics]:
        """Statistics of what every set reads; the float stream then holds the block's outputs."""
        streams, spec, found = [self.float_stream], self.spec, {}
        found["attention_input"] = self.statistics(self.attention_inputs(streams), spec.hidden_size)
        values = self.attention(layer, streams)
        found["attention_output"] = self.statistics(self.stored(streams, values), spec.num_heads * spec.head_dim)
        self.add("self_attn.o_proj", streams, values)
        found["mlp_input"] = self.statistics(self.mlp_inputs(streams), spec.hidden_size)
        values = self.mlp(streams)
        found["mlp_hidden"] = self.statistics(self.stored(streams, values), spec.intermediate_size)
        self.add("mlp.down_proj", streams, values)
        return found

    def _fold(
        self,
        reads: str,
        feeder: str,
        weights: dict[str, torch.Tensor],
        stored_as: Mapping[str, torch.dtype],
        schemes: Mapping[str, LinearScheme],
        statistics: Statistics,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales the columns of the set that reads `reads`, and its feeder's output to match. Returns the scales of the
        columns [in], and those by which the feeder's outputs were divided; ones where a linear concerned stays in float.

        weights: float32, changed in place. stored_as: the dtypes that the checkpoint holds them in.
        """
        members = [x for x in self.spec.linears() if x.reads == reads]
        concerned = [schemes[m.name] for m in members] + ([schemes[feeder]] if feeder in schemes else [])
        channels = self._feeding_channels(reads, members[0].in_features)
        per_channel = torch.ones(int(channels.max()) + 1, device=self.device)
        if not all(scheme.quantized for scheme in concerned):
            return per_channel[channels], per_channel
        W = torch.cat([weights[f"{m.name}.weight"] for m in members])
        per_channel[channels] = column_scale(W, statistics.H, concerned[0], shared=channels)
        feeding = [name for name in (f"{feeder}.weight", f"{feeder}.bias") if name in weights]
        for name in feeding:
            if weights[name].ndim == 1:
                per_channel = _storable(per_channel, weights[name], stored_as[name])
        s = per_channel[channels]
        for member in members:
            weights[f"{member.name}.weight"] = weights[f"{member.name}.weight"] * s
        for name in feeding:
            tensor = weights[name]
            weights[name] = tensor / (per_channel[:, None] if tensor.ndim == 2 else per_channel)
        return s, per_channel

    def _feeding_channels(self, reads: str, in_features: int) -> torch.Tensor:
        """[in] the feeder's channel behind each input: several heads of queries read one head of v."""
        channels = torch.arange(in_features, device=self.device)
        if reads != "attention_output":
            return channels
        head, within = channels // self.spec.head_dim, channels % self.spec.head_dim
        return head // (self.spec.num_heads // self.spec.num_kv_heads) * self.spec.head_dim + within


def _storable(scales: torch.Tensor, vector: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scales nearest to `scales` by which `vector` (a norm, a bias) can be divided without an error from rounding the
    result to `dtype`: what the rounded result stands for. All [channels]."""
    stored = (vector / scales).to(dtype).float()
    exact = vector / stored
    # Zeros and what underflows say nothing of a scale.
    return torch.where(torch.isfinite(exact) & (exact > 0), exact, scales)
