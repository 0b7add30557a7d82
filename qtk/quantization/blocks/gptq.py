"""Quantizes one decoder block by GPTQ: set of linears by set, each calibrated on the output of the quantized block before it.

The four sets (q/k/v, o, gate/up, down) are taken in the order in which data passes them. Each part of the forward pass
runs once: the inputs of the next set are computed with the weights just quantized. So every set sees the inputs that it
will see in use, and linears that share an input share one Hessian.
"""

from __future__ import annotations

import itertools
import time

import torch

from qtk.models.spec import Linear
from qtk.progress import note
from qtk.quantization.algorithms.cholesky import SingularHessian
from qtk.quantization.algorithms.gptq import damping_ladder, gptq
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.layer_log import RoundedSet, layer_records
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import BlockInputs, BlockStreams, Statistics, Stream


class GptqBlocks:
    """Quantizes block after block.

    `quantized` runs through the blocks as they are stored. `float_stream`, when there is one, runs through the float blocks
    beside it, so that GPTQ can correct for the error already present in the inputs (`C` in algorithms/gptq.py).
    """

    def __init__(self, block: BlockStreams, quantized: Stream, float_stream: Stream | None = None) -> None:
        self.block, self.quantized, self.float_stream = block, quantized, float_stream

    @property
    def streams(self) -> list[Stream]:
        return [self.quantized] if self.float_stream is None else [self.quantized, self.float_stream]

    def quantize(self, block: FloatBlock) -> QuantizedBlock:
        """The quantized block; the streams then hold its outputs, those of the float stream the float block's."""
        parts, streams, layer = self.block, self.streams, block.layer
        for stream in streams:
            stream.enter(block.weights)
        result = self._quantize_set(block, "attention_input", parts.attention_inputs(streams))
        values = parts.attention(layer, streams)
        result |= self._quantize_set(block, "attention_output", parts.stored(streams, values))
        parts.add("self_attn.o_proj", streams, values)
        result |= self._quantize_set(block, "mlp_input", parts.mlp_inputs(streams))
        values = parts.mlp(streams)
        result |= self._quantize_set(block, "mlp_hidden", parts.stored(streams, values))
        parts.add("mlp.down_proj", streams, values)
        return result

    def _quantize_set(self, block: FloatBlock, reads: str, inputs: BlockInputs) -> QuantizedBlock:
        """The linears that read `inputs`; the quantized stream then computes with them."""
        members = [linear for linear in block.quantizable(self.block.spec.linears()) if linear.reads == reads]
        result = QuantizedBlock()
        if not members:
            return result
        start = time.monotonic()
        alone = block.weights[f"{members[0].name}.weight"] if len(members) == 1 else None
        statistics = self.block.statistics(inputs, members[0].in_features, alone)
        seconds = (time.monotonic() - start) / len(members)
        alike = [list(m) for _, m in itertools.groupby(members, key=lambda member: block.schemes[member.name])]
        for group in alike:
            own = (
                statistics if group is alike[-1] else statistics.copy()
            )  # GPTQ works in the memory of what it is given
            result |= self._quantize_alike(block, group, own, seconds)
        for member in members:
            self.quantized.replace(member.name, result.linears[member.name])
        return result

    def _quantize_alike(
        self, block: FloatBlock, members: list[Linear], statistics: Statistics, shared_seconds: float
    ) -> QuantizedBlock:
        """Quantizes linears that share input and scheme as one stacked matrix: rows do not depend on each other.
        shared_seconds: each member's share of what was done before."""
        start = time.monotonic()
        scheme = block.schemes[members[0].name]
        weights = [block.weights[f"{member.name}.weight"] for member in members]
        W = torch.cat(weights) if len(weights) > 1 else weights[0]
        method, damping = "gptq", None
        try:
            ladder = damping_ladder(statistics.tokens, W.shape[1])
            result = gptq(W, statistics.H, scheme, drift=statistics.drift, ladder=ladder)
            stacked, damping = result.linear, result.damping
        except SingularHessian:
            method, stacked = "rtn", rtn(W, scheme)
            names = ", ".join(block.prefix + member.name for member in members)
            note(f"{names}: the Hessian stays singular at every damping; rounded to nearest instead.")
        ends = list(itertools.accumulate(member.out_features for member in members))
        linears = {
            member.name: stacked.rows(end - member.out_features, end) for member, end in zip(members, ends, strict=True)
        }
        rounded = RoundedSet(block.prefix, members, scheme, W, stacked, method, damping)
        seconds = shared_seconds + (time.monotonic() - start) / len(members)
        return QuantizedBlock(linears, records=layer_records(rounded, statistics, self.quantized.hidden.dtype, seconds))
