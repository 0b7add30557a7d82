"""GPTQ (Frantar et al., 2022, arXiv:2210.17323): column by column, each rounding error spread over the columns to come.

Names as in the paper: W weights, H = X^T X Hessian, damp the damping. The paper spreads errors by the rows of
U = Cholesky(H^-1)^T. With H = V V^T, V upper, U is V^-1, and the same column is reached without an inverse: the error of all
columns up to i is D V, D the differences of these weights from what they were rounded to, so weight i is moved by
sum_k<i D_k V_ki / V_ii before it is rounded (nearest plane: Babai, 1986; for GPTQ: Chen et al., 2025, arXiv:2507.18553).
One Cholesky decomposition then does, in the memory of H. It is stored in reverse order, where V is lower triangular (L).

Static act-order: the group grids are fixed first, columns are then taken by falling diag(H), and the codes are stored in
natural order, so that the checkpoint needs no g_idx and the kernels pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from qtk.quantization.algorithms.cholesky import damped_cholesky_, reorder_, reorder_columns_, solve_, spans
from qtk.quantization.algorithms.grid import search_grid
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme

# Fractions of mean(diag H) tried in turn until the Cholesky decomposition succeeds. The paper's 0.01 fits a few rows of
# calibration text too closely: 0.05 lowers the KL divergence by a tenth with the correction below (docs/benchmarks.md).
DAMPING_LADDER = (0.05, 0.15, 0.5, 1.5)
# What the first rung is where tokens are few: this times the columns a token has to speak for (docs/benchmarks.md).
_DAMPING_OF_FEW = 0.15
_MOST_DAMPING = 0.5
_SPAN = 512  # columns that take the errors of all columns before them as one matrix product
_BLOCK = 128  # columns of a span that take those of the span
_PANEL = 16  # columns updated one by one inside a block
_ROWS_ELEMENTS = 1 << 23  # of W that are float32 at once: 32 MB


@dataclass(frozen=True)
class GptqResult:
    """The quantized weight, and the damping used (a fraction of mean diag H)."""

    linear: QuantizedLinear
    damping: float


@dataclass(frozen=True)
class Drift:
    """How far the inputs have drifted from those of the float model: C = (X_float - X)^T X [in, in], or, where `of_outputs`,
    W C [out, in], which takes less room for a wide W. float32."""

    matrix: torch.Tensor
    of_outputs: bool = False


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


def damping_ladder(tokens: int, columns: int) -> tuple[float, ...]:
    """The ladder for a Hessian of so many columns that was summed over so many tokens: with fewer than three a column, what H says of
    their correlations is noise in part, and more damping keeps GPTQ from following it."""
    first = min(_DAMPING_OF_FEW * columns / max(tokens, 1), _MOST_DAMPING)
    if first <= DAMPING_LADDER[0]:
        return DAMPING_LADDER
    return tuple(first * rung / DAMPING_LADDER[0] for rung in DAMPING_LADDER)


def gptq(
    W: torch.Tensor,
    H: torch.Tensor,
    scheme: LinearScheme,
    *,
    drift: Drift | None = None,
    alpha: float = 0.5,
    ladder: tuple[float, ...] = DAMPING_LADDER,
    elementwise: Elementwise | None = None,
) -> GptqResult:
    """Quantizes W [out, in], of any float dtype, against H [in, in] float32. Rows are independent: linears that share an
    input may be stacked. H and drift are overwritten; beside them W is held once in float32.

    drift: with it the rounding aims at W + alpha W C H^-1, which takes back the share alpha of the error that is already in
    the inputs (GPTAQ, Li et al., 2025, arXiv:2504.02692, in closed form; alpha 1 would be the least-squares answer, and
    fits the calibration text too closely).
    elementwise: whose calls take a column (None: those that suit the device).
    Raises SingularHessian when no rung of the ladder makes H positive definite.
    """
    if elementwise is None:
        elementwise = NUMPY_CALLS if W.device.type == "cpu" else TORCH_CALLS
    if not bool(H.diagonal().any()):  # no input at all: every column matters as much as every other
        H.diagonal().fill_(1.0)
    # The column that is taken first stands last.
    order = torch.argsort(H.diagonal(), descending=True, stable=True).flip(0)
    natural = torch.argsort(order)
    reorder_(H, order)
    damp = damped_cholesky_(H, ladder)
    if drift is not None:
        reorder_columns_(drift.matrix, order)
        solve_(drift.matrix, H)
        reorder_columns_(drift.matrix, natural)
    # What rounding a column costs once the columns after it have made up for it: GPTQ's own weight of its error.
    importance = H.diagonal().square()[natural]
    Wt, scales, zeros = _targets(W, scheme, importance, order, drift, alpha)
    codes = _round_columns(Wt, H, _Grid(order // scheme.group_size, scales, zeros, scheme.bits), elementwise)
    codes = codes.index_select(0, natural).t().contiguous()
    return GptqResult(QuantizedLinear(codes, scales, zeros, scheme.bits, scheme.group_size), damp)


def _targets(
    W: torch.Tensor,
    scheme: LinearScheme,
    importance: torch.Tensor,
    order: torch.Tensor,
    drift: Drift | None,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(what is to be rounded, [in, out] float32 with its columns as rows in the given order; scales and zeros of its groups).
    drift: as it comes out of the solve."""
    rows, n = W.shape
    Wt = torch.empty(n, rows, device=W.device)
    parts = []
    step = max(1, _ROWS_ELEMENTS // n)
    for part in (slice(start, start + step) for start in range(0, rows, step)):
        w = W[part].float()
        if drift is not None:
            w = w.add(drift.matrix[part] if drift.of_outputs else w @ drift.matrix, alpha=alpha)
        parts.append(search_grid(w, importance, scheme))
        Wt[:, part] = w.index_select(1, order).t()
    scales, zeros = zip(*parts, strict=True)
    return Wt, torch.cat(scales), None if zeros[0] is None else torch.cat(zeros)


@dataclass(frozen=True)
class _Grid:
    """group: [in] of each column in the order of rounding; scales, zeros [out, groups] as `search_grid` gives them."""

    group: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int


def _round_columns(Wt: torch.Tensor, L: torch.Tensor, grid: _Grid, elementwise: Elementwise) -> torch.Tensor:
    """The GPTQ loop, from the last row of Wt [in, out] to the first. Wt is overwritten with the differences D between the
    weights and what they are rounded to. Returns codes [in, out] uint8.

    On small models the number of calls is what costs: a column takes one product of torch and six elementwise calls.
    """
    n, rows = Wt.shape
    rows_of, nearest, calls = elementwise.rows_of, elementwise.nearest, elementwise.calls
    multiply, subtract, maximum, minimum = calls.multiply, calls.subtract, calls.maximum, calls.minimum
    low, top = (
        -(2.0 ** (grid.bits - 1)),
        2.0**grid.bits - 1,
    )  # of codes with the zero point taken off, where it is in the middle
    scales = grid.scales.t().contiguous()
    Zt = torch.full_like(scales, -low) if grid.zeros is None else grid.zeros.t().to(Wt.dtype).contiguous()
    scale_of, inverse_of, lowest, highest = map(rows_of, (scales, scales.reciprocal(), -Zt, top - Zt))
    group_of = grid.group.tolist()
    codes = torch.empty(n, rows, dtype=torch.uint8, device=Wt.device)
    for first, last in reversed(spans(0, n, _SPAN)):
        # Each column of M: what the differences of the columns that were taken before it move its weight by.
        M = L[first:, first:last] / L.diagonal()[first:last]
        moved = Wt[first:last].clone()
        if last < n:
            moved.addmm_(M[last - first :].t(), Wt[last:])
        for start, end in reversed(spans(first, last, _BLOCK)):
            D, T = Wt[start:end], moved[start - first : end - first]
            if end < last:
                T.addmm_(M[end - first : last - first, start - first : end - first].t(), Wt[end:last])
            own, E = torch.empty_like(D), torch.zeros_like(D)
            targets, w_rows, target_rows, code_rows, error_rows = T.unbind(), *map(rows_of, (D, T, own, E))
            within = M[start - first : end - first, start - first : end - first]
            for panel_end in range(end - start, 0, -_PANEL):
                panel = max(panel_end - _PANEL, 0)
                # Differences of the panel's columns to come are still zero, so every column may read them all: no view is cut.
                E_columns = E[panel:panel_end].t()
                M_columns = within[panel:panel_end, panel:panel_end].t().contiguous().unbind()
                for i in reversed(range(panel, panel_end)):
                    target, code, error, g = target_rows[i], code_rows[i], error_rows[i], group_of[start + i]
                    if i + 1 < panel_end:
                        targets[i].addmv_(E_columns, M_columns[i - panel])
                    multiply(target, inverse_of[g], out=code)
                    nearest(code, out=code)
                    maximum(code, lowest[g], out=code)
                    minimum(code, highest[g], out=code)
                    multiply(code, scale_of[g], out=target)
                    subtract(w_rows[i], target, out=error)
                if panel:
                    T[:panel].addmm_(within[panel:panel_end, :panel].t(), E[panel:panel_end])
            D.copy_(E)
            own += Zt[grid.group[start:end]]
            codes[start:end] = own
    return codes
