"""The grid of a group, of 4 or 8 bits: the scale and zero point that lose least, weighted by how much each column matters.

For codes c of a group (zero point taken off), the best scale is the weighted least-squares fit
s = sum(d w c) / sum(d c^2), and its error sum(d w^2) - sum(d w c)^2 / sum(d c^2). So every trial range gives codes,
the codes give the best scale for them, and no fine search over scales is needed. Where the columns' correlations inside a
group are known, d w becomes w H with the group's block H of the Hessian: the error is then that of the group's output.

Full-range symmetric (the lowest code is used, -8 at 4 bits, and the scale's sign says on which side): Cheng et al.,
AutoRound, 2023; ggml's Q4_0.
Weighting by diag(H): the idea of iMatrix, and of GPTQ's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch

from qtk.quantization.scheme_model import LinearScheme

_SYMMETRIC_SHRINKS = (1.0, 0.92, 0.84, 0.76, 0.68)
_ASYMMETRIC_SHRINKS = (1.0, 0.9, 0.8, 0.7)
_BLOCK_DAMPING = 0.01  # share of the mean diagonal that is added to a Hessian's blocks
_THOROUGH_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
# Rows at a time: few enough that what one trial touches stays in the processor's cache, enough that calls cost little.
_CHUNK_ELEMENTS = 1 << 17


def search_grid(
    weight: torch.Tensor, importance: torch.Tensor, scheme: LinearScheme, *, thorough: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scales, zeros), each [out, in / group_size]. Scales are float32, rounded to what float16 holds.

    Symmetric: zeros is None, for codes -2**(bits-1) .. 2**(bits-1) - 1; with `signed_scales` a scale may be negative, so
    that the extra code serves whichever side needs it. Asymmetric: scales are > 0, zeros uint8 in 1 .. 2**bits - 1, for
    codes 0 .. 2**bits - 1. Zero points start at 1, because the gptq v1 container stores zero - 1.

    weight: [out, in] float32. importance: [in] float32, >= 0, the weight of each column's squared error; or [in / group_size,
    group_size, group_size], each group's block on the diagonal of the Hessian. thorough: ranges of both signs and finer
    steps, in three times the time: for rounding to nearest, where no later column makes up for an error.
    """
    if scheme.symmetric:
        return _search_symmetric(weight, importance, scheme, thorough), None
    return _search_asymmetric(weight, importance, scheme, thorough)


def _search_symmetric(
    weight: torch.Tensor, importance: torch.Tensor, scheme: LinearScheme, thorough: bool
) -> torch.Tensor:
    low = 2 ** (scheme.bits - 1)
    groups, weighed = _grouped(weight, importance, scheme.group_size)
    result = groups.new_empty(groups.shape[:2])
    for rows in _row_chunks(groups):
        w = groups[rows]
        high_end, low_end = w.amax(-1), w.amin(-1)
        # Range [-low s, (low - 1) s]: the scale's sign puts the extra code on one side, at first the one that reaches further.
        starts = [torch.maximum(high_end / (low - 1), -low_end / low)]
        if scheme.signed_scales:
            negative = torch.minimum(low_end / (low - 1), -high_end / low)
            starts = [starts[0], negative] if thorough else [torch.where(high_end > -low_end, negative, starts[0])]
        codes, spare = torch.empty_like(w), torch.empty_like(w)
        dw = weighed(w, torch.empty_like(w))
        best = w.new_full(w.shape[:2], -1.0)
        chosen = w.new_zeros(w.shape[:2])
        for start, shrink in product(starts, _THOROUGH_SHRINKS if thorough else _SYMMETRIC_SHRINKS):
            torch.mul(w, _reciprocal(start * shrink).unsqueeze(-1), out=codes).round_().clamp_(-low, low - 1)
            scale, gain = _fitted(codes, dw, weighed(codes, spare))
            better = (gain > best) & (scale * start > 0)  # correlations can turn a sign, which the runtime may not take
            best = torch.where(better, gain, best)
            chosen = torch.where(better, scale, chosen)
        result[rows] = chosen
    return storable_scales(result)


def _search_asymmetric(
    weight: torch.Tensor, importance: torch.Tensor, scheme: LinearScheme, thorough: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    top = 2**scheme.bits - 1
    groups, weighed = _grouped(weight, importance, scheme.group_size)
    scales = groups.new_empty(groups.shape[:2])
    zeros = groups.new_empty(groups.shape[:2], dtype=torch.uint8)
    for rows in _row_chunks(groups):
        w = groups[rows]
        high_end, low_end = w.amax(-1).clamp_min_(0), w.amin(-1).clamp_max_(0)
        codes, spare = torch.empty_like(w), torch.empty_like(w)
        dw = weighed(w, torch.empty_like(w))
        best = w.new_full(w.shape[:2], -1.0)
        chosen, zero = w.new_zeros(w.shape[:2]), w.new_ones(w.shape[:2])
        for shrink in _THOROUGH_SHRINKS if thorough else _ASYMMETRIC_SHRINKS:
            inverse = _reciprocal((high_end - low_end) * (shrink / top))
            middle = (-low_end * shrink * inverse).round_()
            for shift in (0.0, 1.0) if shrink == 1.0 else (0.0,):
                z = (middle + shift).clamp_(1, top)
                torch.mul(w, inverse.unsqueeze(-1), out=codes).round_()
                codes.clamp_(-z.unsqueeze(-1), (top - z).unsqueeze(-1))
                scale, gain = _fitted(codes, dw, weighed(codes, spare))
                better = (gain > best) & (scale > 0)
                best = torch.where(better, gain, best)
                chosen = torch.where(better, scale, chosen)
                zero = torch.where(better, z, zero)
        scales[rows], zeros[rows] = chosen, zero.to(torch.uint8)
    return storable_scales(scales), zeros


def _fitted(codes: torch.Tensor, dw: torch.Tensor, dc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the least-squares scale of each group's codes, what it takes off sum(d w^2)); 0 for codes that are all zero.
    dw, dc: weights and codes, weighed; dc is overwritten."""
    dcc = dc.mul_(codes).sum(-1)
    dwc = torch.mul(dw, codes, out=dc).sum(-1)
    scale = dwc / dcc.clamp_min_(1e-30)
    return scale, dwc * scale


def round_to_grid(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, scheme: LinearScheme
) -> torch.Tensor:
    """Nearest codes, uint8 [out, in], of weight [out, in] float32 on a grid as `search_grid` gives it."""
    groups = weight.view(weight.shape[0], -1, scheme.group_size)
    middle = float(2 ** (scheme.bits - 1))
    zero = torch.tensor(middle, device=weight.device) if zeros is None else zeros.float().unsqueeze(-1)
    codes = (groups * _reciprocal(scales).unsqueeze(-1) + zero).round_().clamp_(0, 2**scheme.bits - 1)
    return codes.to(torch.uint8).view(weight.shape)


def round_to_range(weight: torch.Tensor, scheme: LinearScheme) -> torch.Tensor:
    """weight [out, in] float32 on the grid that its groups' whole range spans, as floats: no search, for quick comparisons.

    Symmetric: the largest magnitude gets code -2**(bits-1), with a scale of the opposite sign.
    """
    groups = weight.view(weight.shape[0], -1, scheme.group_size)
    high_end, low_end = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    if scheme.symmetric:
        low = 2 ** (scheme.bits - 1)
        scale = torch.where(high_end > -low_end, high_end, low_end) / -low
        codes = (groups * _reciprocal(scale)).round_().clamp_(-low, low - 1)
    else:
        top = 2**scheme.bits - 1
        high_end, low_end = high_end.clamp_min(0), low_end.clamp_max(0)
        scale = (high_end - low_end) / top
        inverse = _reciprocal(scale)
        zero = (-low_end * inverse).round_()
        codes = torch.maximum(torch.minimum((groups * inverse).round_(), top - zero), -zero)
    return codes.mul_(scale).view(weight.shape)


def storable_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales as the float16 of a checkpoint will hold them (back in float32); zero becomes 1, so that nothing divides by it.

    A zero scale belongs to a group of zeros, whose codes are all the zero point.
    """
    rounded = scales.to(torch.float16).float()
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def _reciprocal(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, torch.zeros_like(scales), 1.0 / scales)


def _grouped(
    weight: torch.Tensor, importance: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """(weight [out, groups, group_size], what weighs such a tensor into another of its shape)."""
    groups = weight.view(weight.shape[0], -1, group_size)
    # A column that never fires still keeps a trace of weight, so that its codes stay sensible.
    if importance.dim() == 1:
        d = (importance + importance.mean().clamp_min(1e-12) * 1e-6).view(-1, group_size)
        return groups, lambda x, out: torch.mul(x, d, out=out)
    trace = importance.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12) * _BLOCK_DAMPING
    H = importance + trace * torch.eye(group_size, device=weight.device)
    return groups, lambda x, out: out.copy_(torch.bmm(x.transpose(0, 1), H).transpose(0, 1))


def _row_chunks(groups: torch.Tensor) -> list[slice]:
    rows = max(1, _CHUNK_ELEMENTS // (groups.shape[1] * groups.shape[2]))
    return [slice(start, start + rows) for start in range(0, groups.shape[0], rows)]
