"""Round to nearest: the grid of each group searched with every column weighing the same, each weight rounded alone."""

from __future__ import annotations

import torch

from qtk.quantization.algorithms.grid import round_to_grid, search_asymmetric, search_symmetric
from qtk.quantization.quantized_linear import QuantizedLinear


def rtn(
    weight: torch.Tensor,
    group_size: int,
    *,
    symmetric: bool,
    bits: int = 4,
    signed: bool = True,
    importance: torch.Tensor | None = None,
) -> QuantizedLinear:
    """weight [out, in] -> QuantizedLinear. importance: of the columns in the scale search, as `search_symmetric` takes it
    (default: equal).
    signed: symmetric scales may be negative."""
    weight = weight.float()
    d = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance
    if symmetric:
        scales, zeros = search_symmetric(weight, d, group_size, bits, signed=signed, thorough=True), None
    else:
        scales, zeros = search_asymmetric(weight, d, group_size, bits, thorough=True)
    return QuantizedLinear(round_to_grid(weight, scales, zeros, group_size, bits), scales, zeros, bits, group_size)
