"""The arithmetic of low-rank updates: tensors in, tensors out, everything in float32.

LoRA (Hu et al. 2021): W' = W + s B A, s = alpha / r; rsLoRA (Kalajdzievski 2023): s = alpha / sqrt(r);
DoRA (Liu et al. 2024): W' = m (W + s B A) / ||W + s B A||, the norm taken over the inputs of each output.

An update is given as two factors, `left` [rows, r] and `right` [r, columns], so that its rows can be made a few at a
time: left = B, right = A for a linear; left = A^T, right = B^T where the weight is stored transposed (embeddings
[vocabulary, hidden], and the [in, out] weights that peft calls fan_in_fan_out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def scaling(alpha: float, rank: int, *, rank_stabilized: bool) -> float:
    """s of an update of this rank: alpha / r, or alpha / sqrt(r) when rank-stabilized."""
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def factors(a: torch.Tensor, b: torch.Tensor, scale: float, *, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(left, right) of scale * B A from A [r, in] and B [out, r], float32; of its transpose when `transposed`."""
    a, b = a.float(), b.float()
    return (a.T * scale, b.T.contiguous()) if transposed else (b * scale, a)


def stack(updates: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a sum of updates: lefts side by side, rights one below the other (what peft calls `cat`)."""
    if len(updates) == 1:
        return updates[0]
    return torch.cat([left for left, _ in updates], dim=1), torch.cat([right for _, right in updates], dim=0)


def add_update_(rows: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """rows += left @ right, in place: float32 [n, columns], [n, r], [r, columns]."""
    return rows.addmm_(left, right)


def scale_rows_(rows: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA on rows that hold W + s B A, one output a row: gives each row the norm in `magnitude` [n], in place."""
    return rows.mul_((magnitude / torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1))


def scale_columns_(rows: torch.Tensor, magnitude: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """DoRA where an output is a column: `norms` [columns] are those of the whole W + s B A, in place."""
    return rows.mul_(magnitude / norms)


def column_squares(rows: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each column of these rows, float64 [columns]; summed over all rows, then rooted: the norms."""
    return rows.double().square_().sum(dim=0)
