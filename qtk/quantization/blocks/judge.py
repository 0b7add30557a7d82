"""How far a model under quantization is from the float model, on calibration rows that were held back from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qtk.models.forward import rms_norm
from qtk.models.spec import ModelSpec
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.quantized import QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, Rows, Stream

_LOGIT_TOKENS = 256  # whose logits are in memory at once


class Judge(BlockStreams):
    """Follows the quantization block by block: one stream through the float blocks, one through those that are stored."""

    def __init__(
        self,
        spec: ModelSpec,
        rows: Rows,
        budget: ActivationBudget,
        device: torch.device,
        quantized: Stream,
        float_stream: Stream,
    ) -> None:
        super().__init__(spec, rows, budget, device)
        self.streams = [quantized, float_stream]

    def advance(self, layer: int, weights: Mapping[str, torch.Tensor], block: QuantizedBlock) -> None:
        """Takes both streams through block `layer`; weights: the float block by name."""
        quantized, float_stream = self.streams
        dtype = quantized.hidden.dtype
        quantized.weights = block.weights(weights, dtype)
        float_stream.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        for stream in self.streams:
            self.run_block(layer, stream)

    def divergence(self, norm: torch.Tensor, head: torch.Tensor) -> float:
        """KL(float || quantized) in nats per real token, after the last block. norm, head: of the output."""
        total, count = 0.0, 0
        norm, head = norm.to(self.device), head.to(self.device)
        for chunk in self.streams[0].hidden.chunks():
            pair = [self._read(stream.hidden, chunk) for stream in self.streams]
            keep = self._keep(chunk)
            flat = [x.flatten(0, 1) if keep is None else x[keep] for x in pair]
            for pieces in zip(*(x.split(_LOGIT_TOKENS) for x in flat), strict=True):
                log_q, log_p = (
                    (rms_norm(x, norm, self.spec.rms_norm_eps) @ head.t()).float().log_softmax(-1) for x in pieces
                )
                total += float((log_p.exp() * (log_p - log_q)).sum())
            count += flat[0].shape[0]
        return total / count
