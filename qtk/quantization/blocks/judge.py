"""How far a model under quantization is from the float model, on calibration rows that were held back from it."""

from __future__ import annotations

import torch

from qtk.models.forward import rms_norm
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, Stream

_LOGIT_TOKENS = 256  # whose logits are in memory at once


class Judge:
    """Follows the quantization block by block: one stream through the float blocks, one through those that are stored."""

    def __init__(self, block: BlockStreams, quantized: Stream, float_stream: Stream) -> None:
        self.block, self.quantized, self.float_stream = block, quantized, float_stream

    @property
    def streams(self) -> list[Stream]:
        return [self.quantized, self.float_stream]

    def advance(self, block: FloatBlock, stored: QuantizedBlock) -> None:
        """Takes both streams through a block: as it is stored, and in float."""
        self.quantized.enter(stored.stored(block.weights))
        self.float_stream.enter(block.weights)
        for stream in self.streams:
            self.block.run_block(block.layer, stream)

    def divergence(self, norm: torch.Tensor, head: torch.Tensor) -> float:
        """KL(float || quantized) in nats per real token, after the last block. norm [hidden], head [vocab, hidden]: of the
        output."""
        total, count = 0.0, 0
        device, eps = self.block.device, self.block.spec.rms_norm_eps
        norm, head = norm.to(device), head.to(device)
        for chunk in self.quantized.hidden.chunks():
            pair = [self.block.read(stream.hidden, chunk) for stream in self.streams]
            keep = self.block.keep(chunk)
            flat = [x.flatten(0, 1) if keep is None else x[keep] for x in pair]
            for pieces in zip(*(x.split(_LOGIT_TOKENS) for x in flat), strict=True):
                log_q, log_p = ((rms_norm(x, norm, eps) @ head.t()).float().log_softmax(-1) for x in pieces)
                total += float((log_p.exp() * (log_p - log_q)).sum())
            count += flat[0].shape[0]
        return total / count
