"""Quantizes one decoder block by AWQ: the statistics of every set are taken on the float model, then scales are folded."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from qtk.models.spec import Linear
from qtk.quantization.algorithms.awq import awq
from qtk.quantization.blocks.folding import FED_BY, Fold, fold_scales
from qtk.quantization.blocks.layer_log import RoundedSet, layer_records
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, Statistics, Stream


class AwqBlocks:
    """Quantizes block after block, from the statistics of the float stream."""

    def __init__(self, block: BlockStreams, float_stream: Stream) -> None:
        self.block, self.float_stream = block, float_stream

    @property
    def streams(self) -> list[Stream]:
        return [self.float_stream]

    def quantize(self, block: FloatBlock) -> QuantizedBlock:
        """The quantized block, with the norms and biases into which scales were folded; the stream then holds the outputs
        of the float block."""
        start = time.monotonic()
        statistics = self._run_float(block)
        scaled = {name: weight.float() for name, weight in block.weights.items()}
        folds = {}
        for reads in FED_BY:
            folds[reads] = fold_scales(self.block.spec, block, reads, scaled, statistics[reads])
            scaled |= folds[reads].weights
        members = block.quantizable(self.block.spec.linears())
        shared_seconds = (time.monotonic() - start) / max(len(members), 1)
        result = QuantizedBlock()
        for member in members:
            result |= self._quantize_linear(block, member, scaled, folds, statistics[member.reads], shared_seconds)
        changed = {name: w.to(block.weights[name].dtype) for name, w in scaled.items() if _differs(w, block, name)}
        return result | QuantizedBlock(
            floats={n: w for n, w in changed.items() if n.removesuffix(".weight") not in result.linears}
        )

    def _quantize_linear(
        self,
        block: FloatBlock,
        member: Linear,
        scaled: Mapping[str, torch.Tensor],
        folds: Mapping[str, Fold],
        statistics: Statistics,
        shared_seconds: float,
    ) -> QuantizedBlock:
        """One linear of the scaled block. shared_seconds: its share of what was done before."""
        start = time.monotonic()
        scheme, s = block.schemes[member.name], folds[member.reads].columns
        linear = awq(scaled[f"{member.name}.weight"], statistics.H / (s[:, None] * s), scheme)
        unscaled = linear.dequantize() / s
        for reads, feeder in FED_BY.items():
            if feeder == member.name:
                unscaled *= folds[reads].outputs[:, None]
        W = block.weights[f"{member.name}.weight"].float()
        rounded = RoundedSet(block.prefix, [member], scheme, W, unscaled, "awq")
        seconds = shared_seconds + time.monotonic() - start
        records = layer_records(rounded, statistics, self.float_stream.hidden.dtype, seconds)
        return QuantizedBlock({member.name: linear}, records=records)

    def _run_float(self, block: FloatBlock) -> dict[str, Statistics]:
        """Statistics of what every set reads; the float stream then holds the block's outputs."""
        self.float_stream.enter(block.weights)
        parts, streams, spec, statistics = self.block, self.streams, self.block.spec, {}
        statistics["attention_input"] = parts.statistics(parts.attention_inputs(streams), spec.hidden_size)
        values = parts.attention(block.layer, streams)
        statistics["attention_output"] = parts.statistics(parts.stored(streams, values), spec.num_heads * spec.head_dim)
        parts.add("self_attn.o_proj", streams, values)
        statistics["mlp_input"] = parts.statistics(parts.mlp_inputs(streams), spec.hidden_size)
        values = parts.mlp(streams)
        statistics["mlp_hidden"] = parts.statistics(parts.stored(streams, values), spec.intermediate_size)
        parts.add("mlp.down_proj", streams, values)
        return statistics


def _differs(scaled: torch.Tensor, block: FloatBlock, name: str) -> bool:
    return not torch.equal(scaled, block.weights[name].float())
