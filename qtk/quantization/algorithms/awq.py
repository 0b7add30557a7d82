"""AWQ (Lin et al., 2023, arXiv:2306.00978): columns that see large inputs are scaled up before rounding, and the layer that
feeds them is scaled down to match, so that the grid of a group serves the columns that matter.

Names as in the paper: W weights, X inputs, s the scale of each column, alpha the exponent searched on a grid of 20. The loss
of a trial is what rounding does to the outputs, |W X - Q(W s) s^-1 X|^2 = tr(D H D^T) with D the difference and H = X^T X,
so that the inputs themselves are not needed. The clip search of the paper is the search of the grid (grid.py): it
tries narrower ranges with each column weighted by diag(H).
"""

from __future__ import annotations

import torch

from qtk.quantization.algorithms.grid import round_to_range
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme

_GRID = 20


def column_scale(W: torch.Tensor, H: torch.Tensor, scheme: LinearScheme, *, shared: torch.Tensor) -> torch.Tensor:
    """[in] float32 > 0: what to multiply the columns of W by, and to divide what feeds them by.

    The best s = rms(X)^alpha / mean|W|^(1 - alpha) over alpha = 0, 1/20 .. 19/20, or ones where none of them is better than that.
    W: [out, in] float32, the linears that read X stacked. H: [in, in] float32.
    shared: [in] int64, columns with the same number must get the same scale (inputs that one upstream channel feeds).
    """
    in_features = W.shape[1]
    groups = W.abs().view(W.shape[0], -1, scheme.group_size)
    mean_weight = (groups / groups.amax(-1, keepdim=True).clamp_min(1e-6)).view(W.shape).mean(0)
    rms_input = H.diagonal().clamp_min(0).sqrt()
    best = W.new_ones(in_features)
    least = _loss(W, H, best, scheme)
    for step in range(_GRID):
        alpha = step / _GRID
        s = (rms_input.pow(alpha) / (mean_weight.pow(1 - alpha) + 1e-4)).clamp_min(1e-4)
        # Geometric mean over the columns that share a channel.
        s = W.new_zeros(in_features).scatter_reduce(0, shared, s.log(), "mean", include_self=False)[shared].exp()
        s = s / (s.max() * s.min()).sqrt()
        loss = _loss(W, H, s, scheme)
        if loss < least:
            best, least = s, loss
    return best


def awq(W: torch.Tensor, H: torch.Tensor, scheme: LinearScheme) -> QuantizedLinear:
    """Quantizes W [out, in] float32, scaled already, to nearest; H [in, in] float32 is that of the scaled inputs. The range
    of each group is searched for the least error of what the group adds to the output, as in AutoAWQ's clip search."""
    size = scheme.group_size
    groups = W.shape[1] // size
    blocks = H.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return rtn(W, scheme, importance=blocks)


def _loss(W: torch.Tensor, H: torch.Tensor, s: torch.Tensor, scheme: LinearScheme) -> float:
    scaled = W * s
    D = (scaled - round_to_range(scaled, scheme)) / s
    return float(torch.linalg.vecdot(D @ H, D).sum())
