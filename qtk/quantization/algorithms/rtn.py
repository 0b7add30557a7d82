"""Round to nearest: the grid of each group is searched with every column weighing the same, then each weight is rounded alone."""

from __future__ import annotations

import torch

from qtk.quantization.algorithms.grid import round_to_grid, search_grid
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme


def rtn(weight: torch.Tensor, scheme: LinearScheme, *, importance: torch.Tensor | None = None) -> QuantizedLinear:
    """weight [out, in] -> QuantizedLinear. importance: of the columns in the scale search, as `search_grid` takes it
    (default: equal)."""
    weight = weight.float()
    d = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance
    scales, zeros = search_grid(weight, d, scheme, thorough=True)
    codes = round_to_grid(weight, scales, zeros, scheme)
    return QuantizedLinear(codes, scales, zeros, scheme.bits, scheme.group_size)
