"""One decoder block as it will be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qtk.quantization.blocks.layer_log import LayerRecord
from qtk.quantization.quantized_linear import QuantizedLinear


@dataclass
class QuantizedBlock:
    """One block's quantized linears, the float tensors that changed on the way (norms, biases), both by name below the
    block's prefix, and the log."""

    linears: dict[str, QuantizedLinear]
    floats: dict[str, torch.Tensor] = field(default_factory=dict)
    records: list[LayerRecord] = field(default_factory=list)

    def weights(self, original: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The whole block in `dtype`, by name, for the forward pass; original: the float block that it was made from."""
        result = {name: self.floats.get(name, weight).to(dtype) for name, weight in original.items()}
        return result | {f"{name}.weight": linear.dequantize(dtype) for name, linear in self.linears.items()}
