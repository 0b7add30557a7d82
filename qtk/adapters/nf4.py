"""NF4 as bitsandbytes rounds a weight to it and back: what a QLoRA adapter saw of its base during training.

Dettmers et al., QLoRA (2023): the flattened weight in blocks of 64, each divided by its largest magnitude and rounded
to the nearest of 16 levels, the quantiles of a normal distribution; the blocks' largest magnitudes, less their mean,
are rounded in blocks of 256 to 256 levels of a dynamic exponent (Dettmers, 8-bit approximations, 2015): "double
quantization". Rounding needs the magnitudes of the whole tensor first, then goes over the weight in any pieces that
start on a block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

BLOCK = 64
_ABSMAX_BLOCK = 256
# The 16 levels, as published with QLoRA: quantiles of the normal distribution, scaled to -1..1, with an exact zero.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@functools.cache
def _levels() -> tuple[torch.Tensor, tuple[float, ...]]:
    """(levels [16] float32, the 15 midpoints between them)."""
    levels = torch.tensor(LEVELS, dtype=torch.float32)
    return levels, tuple(((levels[:-1] + levels[1:]) / 2).tolist())


@functools.cache
def dynamic_levels() -> torch.Tensor:
    """[256] float32, ascending: seven decades of the signed 8-bit dynamic type, with 0 and 1."""
    positive: list[float] = []
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        positive += (10.0 ** (exponent - 6) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
    return torch.tensor(sorted([*positive, *(-level for level in positive), 0.0, 1.0]), dtype=torch.float32)


def block_absmax(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each block of 64 of the flattened `weight`: [ceil(n / 64)] float32; the last may be short."""
    flat = weight.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    low, high = torch.aminmax(flat[:whole].view(-1, BLOCK), dim=1)
    absmax = torch.maximum(low.neg(), high).float()
    if whole < flat.numel():
        absmax = torch.cat([absmax, flat[whole:].abs().max().float().reshape(1)])
    return absmax


@dataclass(frozen=True)
class RoundedMagnitudes:
    """Blocks' magnitudes rounded to 8 bits: codes uint8 [blocks], scales float32 [blocks / 256], offset float32 []."""

    codes: torch.Tensor
    scales: torch.Tensor
    offset: torch.Tensor

    def restored(self) -> torch.Tensor:
        """The magnitudes as they come back, float32 [blocks]."""
        levels = dynamic_levels().to(self.codes.device)[self.codes.int()]
        return levels * self.scales.repeat_interleave(_ABSMAX_BLOCK)[: len(levels)] + self.offset


def round_magnitudes(absmax: torch.Tensor) -> RoundedMagnitudes:
    """Double quantization of all blocks' magnitudes [blocks] float32."""
    offset = absmax.mean()
    centred = absmax - offset
    padded = torch.nn.functional.pad(centred, (0, -len(centred) % _ABSMAX_BLOCK)).view(-1, _ABSMAX_BLOCK)
    scale = padded.abs().amax(dim=1, keepdim=True)
    # A block of equal magnitudes has nothing left but zeros: its scale of 0 must not divide.
    unit = (padded * (1.0 / scale.clamp(min=1e-38))).clamp(-1, 1)
    levels = dynamic_levels()
    codes = torch.bucketize(unit, (levels[:-1] + levels[1:]) / 2).to(torch.uint8)
    return RoundedMagnitudes(codes.view(-1)[: len(centred)], scale.view(-1), offset)


def double_quantized(absmax: torch.Tensor) -> torch.Tensor:
    """The magnitudes as they come back from their own rounding to 8 bits: [blocks] float32 from all blocks' magnitudes."""
    return round_magnitudes(absmax).restored()


def nearest_codes(weight: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """The level of each element of a piece that starts on a block: uint8 [blocks, 64], a short last block padded.

    absmax: the true magnitudes of the piece's blocks.
    """
    _, midpoints = _levels()
    flat = weight.reshape(-1).float()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    unit = (blocks * (1.0 / absmax.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
    # Counting the midpoints below is the nearest level's index: 15 comparisons, far faster than a search per element.
    codes = torch.zeros(unit.shape, dtype=torch.uint8)
    above = torch.empty(unit.shape, dtype=torch.bool)
    for midpoint in midpoints:
        codes.add_(torch.gt(unit, midpoint, out=above))
    return codes


def rounded(weight: torch.Tensor, absmax: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """`weight` rounded to NF4 and back, as bfloat16 of the same shape.

    `weight`: a piece that starts on a block; `absmax`: its blocks' true magnitudes, which choose the codes;
    `restored`: the same after `double_quantized`, which scale them back.
    """
    levels, _ = _levels()
    values = levels[nearest_codes(weight, absmax).int()].mul_(restored.unsqueeze(1))
    return values.view(-1)[: weight.numel()].to(torch.bfloat16).view(weight.shape)
