"""Round to nearest: the grid of each group is searched with every column weighing the same, then each weight is rounded alone."""

from __future__ import annotations

import torch

from qtk.quantization.algorithms.grid import round_to_grid, search_grid
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme

_ROWS_ELEMENTS = 1 << 23  # of a weight that are in float32 at once: rows do not depend on each other


def rtn(weight: torch.Tensor, scheme: LinearScheme, *, importance: torch.Tensor | None = None) -> QuantizedLinear:
    """weight [out, in] -> QuantizedLinear. importance: of the columns in the scale search, as `search_grid` takes it
    (default: equal)."""
    n = weight.shape[1]
    d = torch.ones(n, device=weight.device) if importance is None else importance
    parts = [_rounded(part.float(), d, scheme) for part in weight.split(max(1, _ROWS_ELEMENTS // n))]
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedLinear(codes, scales, torch.cat(zeros) if zeros else None, scheme.bits, scheme.group_size)


def _rounded(rows: torch.Tensor, d: torch.Tensor, scheme: LinearScheme) -> QuantizedLinear:
    scales, zeros = search_grid(rows, d, scheme, thorough=True)
    return QuantizedLinear(round_to_grid(rows, scales, zeros, scheme), scales, zeros, scheme.bits, scheme.group_size)
