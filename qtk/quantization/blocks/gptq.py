"""Quantizes one decoder block by GPTQ: set of linears by set, each calibrated on what the quantized block before it puts out.

The four sets (q/k/v, o, gate/up, down) are taken in the order in which data passes them. Each part of the forward pass
runs once: what the next set reads is computed with the weights just quantized, so that every set sees the inputs it will
see in use, and linears that share an input share one Hessian.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from qtk.models.spec import Linear, ModelSpec
from qtk.progress import note
from qtk.quantization.algorithms.gptq import SingularHessian, gptq
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.layer_log import layer_records
from qtk.quantization.blocks.quantized import QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, Rows, Statistics, Stream
from qtk.quantization.scheme_model import LinearScheme


class GptqBlocks(BlockStreams):
    """Quantizes block after block. `quantized` runs through the blocks as they are stored; `float_stream`, when there is
    one, through the float blocks beside it, so that each set of linears is told how far its inputs are off."""

    def __init__(
        self,
        spec: ModelSpec,
        rows: Rows,
        budget: ActivationBudget,
        device: torch.device,
        quantized: Stream,
        float_stream: Stream | None = None,
    ) -> None:
        super().__init__(spec, rows, budget, device)
        self.quantized, self.float_stream = quantized, float_stream
        self.streams = [quantized] if float_stream is None else [quantized, float_stream]

    def quantize(
        self, layer: int, weights: dict[str, torch.Tensor], schemes: Mapping[str, LinearScheme]
    ) -> QuantizedBlock:
        """weights: block `layer` as stored, by name below its prefix. schemes: linear names -> scheme (bits 16: left
        alone). The streams then hold the block's outputs."""
        dtype = self.quantized.hidden.dtype
        for stream in self.streams:
            stream.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        block = QuantizedBlock({})

        def quantize_set(reads: str, inputs: Callable[[], Iterator[tuple[slice, list[torch.Tensor]]]]) -> None:
            members = [x for x in self.spec.linears() if x.reads == reads and schemes[x.name].quantized]
            if not members:
                return
            start = time.monotonic()
            statistics = self.statistics(inputs(), members[0].in_features)
            for scheme, group in itertools.groupby(members, key=lambda x: schemes[x.name]):
                self._quantize_alike(layer, list(group), scheme, weights, statistics, start, block)
                start = time.monotonic()
            for member in members:
                self.quantized.weights[f"{member.name}.weight"] = block.linears[member.name].dequantize(dtype)

        quantize_set("attention_input", lambda: self.attention_inputs(self.streams))
        values = self.attention(layer, self.streams)
        quantize_set("attention_output", lambda: self.stored(self.streams, values))
        self.add("self_attn.o_proj", self.streams, values)
        quantize_set("mlp_input", lambda: self.mlp_inputs(self.streams))
        values = self.mlp(self.streams)
        quantize_set("mlp_hidden", lambda: self.stored(self.streams, values))
        self.add("mlp.down_proj", self.streams, values)
        return block

    def _quantize_alike(
        self,
        layer: int,
        members: list[Linear],
        scheme: LinearScheme,
        weights: Mapping[str, torch.Tensor],
        statistics: Statistics,
        start: float,
        block: QuantizedBlock,
    ) -> None:
        """Quantizes linears that share input and scheme as one stacked matrix: rows do not depend on each other."""
        W = torch.cat([weights[f"{m.name}.weight"].float() for m in members])
        prefix = self.spec.block_prefix(layer)
        method, damping = "gptq", None
        try:
            result = gptq(W, statistics.H, scheme, C=statistics.C)
            stacked, damping = result.linear, result.damping
        except SingularHessian:
            method, stacked = "rtn", rtn(W, scheme)
            names = ", ".join(prefix + member.name for member in members)
            note(f"WARNING: {names}: the Hessian stays singular at every damping; rounded to nearest instead.")
        row = 0
        for member in members:
            block.linears[member.name] = stacked.rows(row, row + member.out_features)
            row += member.out_features
        block.records += layer_records(
            prefix,
            members,
            scheme,
            W,
            stacked,
            statistics,
            method=method,
            damping=damping,
            seconds=time.monotonic() - start,
            dtype=self.quantized.hidden.dtype,
        )
