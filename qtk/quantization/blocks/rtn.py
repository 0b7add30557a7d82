"""Quantizes one decoder block by rounding to nearest, which needs no calibration rows."""

from __future__ import annotations

import time

import torch

from qtk.models.spec import ModelSpec
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import Stream
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import LayerRecord
from qtk.quantization.scheme_model import LinearScheme


class RtnBlocks:
    """Quantizes block after block, each linear by itself."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    def streams(self) -> list[Stream]:
        return []

    def quantize(self, block: FloatBlock) -> QuantizedBlock:
        """The block with every linear rounded whose scheme is not float."""
        result = QuantizedBlock()
        for linear in block.quantizable(self.spec.linears()):
            scheme = block.schemes[linear.name]
            rounded, record = _rounded(block.prefix + linear.name, block.weights[f"{linear.name}.weight"], scheme)
            result |= QuantizedBlock({linear.name: rounded}, records=(record,))
        return result


def _rounded(module: str, weight: torch.Tensor, scheme: LinearScheme) -> tuple[QuantizedLinear, LayerRecord]:
    start = time.monotonic()
    linear = rtn(weight, scheme)
    record = LayerRecord(
        layer=module,
        method="rtn",
        bits=scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        seconds=round(time.monotonic() - start, 4),
    )
    return linear, record
