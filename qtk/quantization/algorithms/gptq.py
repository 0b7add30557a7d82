"""GPTQ (Frantar et al., 2022, arXiv:2210.17323): column by column, each rounding error spread over the columns to come.

Names as in the paper: W weights, H = X^T X Hessian, Hinv its inverse, U = Cholesky(Hinv)^T upper, damp the damping.
Static act-order: the group grids are fixed first, columns are then taken by falling diag(H), and the codes are stored in
natural order, so that the checkpoint needs no g_idx and the kernels pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from qtk.quantization.algorithms.grid import search_grid
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme

# Fractions of mean(diag H) tried in turn until the Cholesky decomposition succeeds. The paper's 0.01 fits a few rows of
# calibration text too closely: 0.05 lowers the KL divergence by a tenth with the correction below (docs/benchmarks.md).
DAMPING_LADDER = (0.05, 0.15, 0.5, 1.5)
_BLOCK = 128  # columns whose updates to the rest are applied as one matrix product
_PANEL = 16  # columns updated one by one inside a block


@dataclass(frozen=True)
class GptqResult:
    """The quantized weight, and the damping used (a fraction of mean diag H)."""

    linear: QuantizedLinear
    damping: float


@dataclass(frozen=True)
class Elementwise:
    """The elementwise calls that a column takes: `rows_of` cuts a matrix into its rows, `nearest` rounds half to even,
    `calls` is the module of all others."""

    rows_of: Callable[[torch.Tensor], Any]
    nearest: Callable[..., Any]
    calls: Any


# On the CPU, NumPy's calls on the same memory cost a third of torch's each.
NUMPY_CALLS = Elementwise(lambda matrix: list(matrix.numpy()), numpy.rint, numpy)
TORCH_CALLS = Elementwise(torch.unbind, torch.round, torch)


class SingularHessian(Exception):
    """H stayed singular up to the highest rung of the damping ladder."""


def inverse_cholesky(
    H: torch.Tensor, order: torch.Tensor, ladder: tuple[float, ...] = DAMPING_LADDER
) -> tuple[torch.Tensor, float]:
    """(U, damp): U [n, n] upper with (H + damp mean(diag H) I)^-1 = U^T U, its rows and columns in the given order [n].
    Raises SingularHessian.

    With J the reversal, J H J = L L^T gives U = J L^-1 J: one Cholesky and one triangular inverse.
    """
    reverse = order.flip(0)
    damped = H.index_select(0, reverse).index_select(1, reverse)
    diagonal = damped.diagonal().clone()
    mean = H.diagonal().mean()
    for damp in ladder:
        damped.diagonal().copy_(diagonal + damp * mean)
        L, failed = torch.linalg.cholesky_ex(damped)
        # An entry that is not finite makes the pivot of its row not finite either.
        if not failed and bool(torch.isfinite(L.diagonal()).all()):
            return _inverse_triangular(L).flip(0, 1), damp
    raise SingularHessian


def _inverse_triangular(L: torch.Tensor) -> torch.Tensor:
    """L^-1 of a lower triangular L by halves, [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]: matrix products
    where a triangular solve would spend its time on zeros."""
    n = L.shape[0]
    if n <= _BLOCK:
        return torch.linalg.solve_triangular(L, torch.eye(n, device=L.device), upper=False)
    half = n // 2
    inverse = torch.zeros_like(L)
    A, D = _inverse_triangular(L[:half, :half]), _inverse_triangular(L[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = A, D
    torch.mm(D @ L[half:, :half], A, out=inverse[half:, :half]).neg_()
    return inverse


def gptq(
    W: torch.Tensor,
    H: torch.Tensor,
    scheme: LinearScheme,
    *,
    C: torch.Tensor | None = None,
    alpha: float = 0.5,
    ladder: tuple[float, ...] = DAMPING_LADDER,
    elementwise: Elementwise | None = None,
) -> GptqResult:
    """Quantizes W [out, in] float32 against H [in, in] float32. Rows are independent: linears that share an input may be stacked.

    C: (X_float - X)^T X [in, in], where X are the inputs that the quantized model has and X_float those that it should
    have. With it the rounding aims at W + alpha W C H^-1, which takes back the share alpha of the error that is already
    in the inputs (GPTAQ, Li et al., 2025, arXiv:2504.02692, in closed form; alpha 1 would be the least-squares answer,
    and fits the calibration text too closely).
    elementwise: whose calls take a column (None: those that suit the device).
    Raises SingularHessian when no rung of the ladder makes H positive definite.
    """
    if elementwise is None:
        elementwise = NUMPY_CALLS if W.device.type == "cpu" else TORCH_CALLS
    if not bool(H.diagonal().any()):  # no input at all: every column matters as much as every other
        H = torch.eye(H.shape[0], device=H.device)
    order = torch.argsort(H.diagonal(), descending=True, stable=True)
    U, damp = inverse_cholesky(H, order, ladder)
    if C is not None:
        W = W.add(_input_correction(W, C, U, order), alpha=alpha)
    # What rounding a column costs once the columns after it have made up for it: GPTQ's own weight of its error.
    importance = torch.empty_like(H.diagonal())
    importance[order] = U.diagonal().pow(-2)
    scales, zeros = search_grid(W, importance, scheme)
    Wt = W.t().contiguous().index_select(0, order)
    codes = _round_columns(Wt, U, order // scheme.group_size, scales, zeros, scheme.bits, elementwise)
    codes = codes.index_select(0, torch.argsort(order)).t().contiguous()
    return GptqResult(QuantizedLinear(codes, scales, zeros, scheme.bits, scheme.group_size), damp)


def _input_correction(W: torch.Tensor, C: torch.Tensor, U: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """W C H^-1 [out, in], with H^-1 = U^T U in the given order of columns; the smaller matrix is multiplied first."""
    left = W if W.shape[0] < W.shape[1] else None
    product = (C if left is None else left @ C)[:, order] @ U.t() @ U
    result = torch.empty_like(product)
    result[:, order] = product
    return W @ result if left is None else result


def _round_columns(
    Wt: torch.Tensor,
    U: torch.Tensor,
    group: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    elementwise: Elementwise,
) -> torch.Tensor:
    """The GPTQ loop on Wt [in, out] (columns of W as contiguous rows, already in order; overwritten). Returns codes [in, out].

    On small models the number of calls is what costs: a column takes one product of torch and six elementwise calls.
    """
    n, rows = Wt.shape
    rows_of, nearest, calls = elementwise.rows_of, elementwise.nearest, elementwise.calls
    multiply, subtract, maximum, minimum = calls.multiply, calls.subtract, calls.maximum, calls.minimum
    low, top = -(2.0 ** (bits - 1)), 2.0**bits - 1  # of codes with the zero point taken off, where it is in the middle
    grid = scales.t().contiguous()
    Zt = torch.full_like(grid, -low) if zeros is None else zeros.t().to(Wt.dtype).contiguous()
    scale_of, inverse_of, lowest, highest = map(rows_of, (grid, grid.reciprocal(), -Zt, top - Zt))
    U = U / U.diagonal()[:, None]  # so that the error of a column is taken in weights: (w - q) / U_ii of the paper
    Ut = U.t().contiguous()
    group_of = group.tolist()
    codes = torch.empty_like(Wt)
    weights, W_rows, code_rows = Wt.unbind(), rows_of(Wt), rows_of(codes)
    for block in range(0, n, _BLOCK):
        block_end = min(block + _BLOCK, n)
        E = torch.zeros(block_end - block, rows, device=Wt.device)
        error_rows = rows_of(E)
        for panel in range(block, block_end, _PANEL):
            panel_end = min(panel + _PANEL, block_end)
            E_panel = E[panel - block : panel_end - block]
            # Errors of the panel's columns to come are still zero, so every column may read them all: no view is cut.
            E_columns, U_columns = E_panel.t(), Ut[panel:panel_end, panel:panel_end].unbind()
            for i in range(panel, panel_end):
                w, code, error, g = W_rows[i], code_rows[i], error_rows[i - block], group_of[i]
                if i > panel:
                    weights[i].addmv_(E_columns, U_columns[i - panel], alpha=-1)
                multiply(w, inverse_of[g], out=code)
                nearest(code, out=code)
                maximum(code, lowest[g], out=code)
                minimum(code, highest[g], out=code)
                multiply(code, scale_of[g], out=error)
                subtract(w, error, out=error)
            if panel_end < block_end:
                Wt[panel_end:block_end].addmm_(U[panel:panel_end, panel_end:block_end].t(), E_panel, alpha=-1)
        if block_end < n:
            Wt[block_end:].addmm_(U[block:block_end, block_end:].t(), E, alpha=-1)
    codes += -low if zeros is None else Zt[group]
    return codes.to(torch.uint8)
