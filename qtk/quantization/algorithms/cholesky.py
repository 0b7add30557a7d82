"""A Cholesky decomposition in the memory of the matrix itself, and solves with it: for Hessians of more than a gigabyte.

Everything goes by tiles of columns, so that the work is matrix products and what is held beside the matrix is one strip of
it. L fills the lower triangle; the strict upper triangle keeps the symmetric matrix that was given, from which a failed
attempt is taken back.
"""

from __future__ import annotations

import torch

_TILE = 256
_PANEL = 1024  # columns that take what all columns before them say as one product: wide enough for its full speed


class SingularHessian(Exception):
    """H stayed singular up to the highest rung of the damping ladder."""


def reorder_(A: torch.Tensor, order: torch.Tensor) -> None:
    """A [n, n] becomes A[order][:, order], in place, a strip at a time."""
    reorder_columns_(A, order)
    for start in range(0, A.shape[1], _TILE):
        strip = A[:, start : start + _TILE]
        strip.copy_(strip.index_select(0, order))


def reorder_columns_(A: torch.Tensor, order: torch.Tensor) -> None:
    """A [rows, n] becomes A[:, order], in place, a strip of rows at a time."""
    for start in range(0, A.shape[0], _TILE):
        strip = A[start : start + _TILE]
        strip.copy_(strip.index_select(1, order))


def damped_cholesky_(H: torch.Tensor, ladder: tuple[float, ...]) -> float:
    """Replaces the lower triangle of H [n, n] by L with L L^T = H + damp mean(diag H) I. Returns damp, the first rung of the
    ladder with which that succeeds. Raises SingularHessian."""
    diagonal = H.diagonal().clone()
    mean = diagonal.mean()
    for attempt, damp in enumerate(ladder):
        if attempt:
            _mirror_upper_(H)
        H.diagonal().copy_(diagonal + damp * mean)
        # An entry that is not finite makes the pivot of its row not finite either.
        if _decompose_(H) and bool(torch.isfinite(H.diagonal()).all()):
            return damp
    raise SingularHessian


def solve_(B: torch.Tensor, L: torch.Tensor) -> None:
    """B [rows, n] becomes B (L L^T)^-1, in place. L: as `damped_cholesky_` leaves it."""
    n = L.shape[0]
    for first, last in spans(0, n, _PANEL):  # Y L^T = B
        if first:
            B[:, first:last].addmm_(B[:, :first], L[first:last, :first].t(), alpha=-1)
        for start, end in spans(first, last, _TILE):
            if start > first:
                B[:, start:end].addmm_(B[:, first:start], L[start:end, first:start].t(), alpha=-1)
            own = L[start:end, start:end].tril().t()
            B[:, start:end] = torch.linalg.solve_triangular(own, B[:, start:end], upper=True, left=False)
    for first, last in reversed(spans(0, n, _PANEL)):  # X L = Y
        if last < n:
            B[:, first:last].addmm_(B[:, last:], L[last:, first:last], alpha=-1)
        for start, end in reversed(spans(first, last, _TILE)):
            if end < last:
                B[:, start:end].addmm_(B[:, end:last], L[end:last, start:end], alpha=-1)
            own = L[start:end, start:end].tril()
            B[:, start:end] = torch.linalg.solve_triangular(own, B[:, start:end], upper=False, left=False)


def spans(start: int, end: int, width: int) -> list[tuple[int, int]]:
    """(start, end) of neighbouring stretches of start..end-1, each `width` wide, the last perhaps less."""
    return [(first, min(first + width, end)) for first in range(start, end, width)]


def mirror_lower_(H: torch.Tensor, tile: int = _TILE) -> None:
    """Fills what lies below the tiles on the diagonal with the mirror image of what lies above them."""
    for start in range(0, H.shape[0], tile):
        end = start + tile
        H[end:, start:end] = H[start:end, end:].t()


def _mirror_upper_(H: torch.Tensor) -> None:
    mirror_lower_(H)
    for start in range(0, H.shape[0], _TILE):
        tile = H[start : start + _TILE, start : start + _TILE]
        tile.copy_(tile.triu() + tile.triu(1).t())


def _decompose_(A: torch.Tensor) -> bool:
    """Whether A was positive definite, as far as its pivots tell. Left-looking: what lies below a panel is brought up to date by
    one product, and within it each tile of columns is read and written once."""
    n = A.shape[0]
    for first, last in spans(0, n, _PANEL):
        if first and last < n:
            A[last:, first:last].addmm_(A[last:, :first], A[first:last, :first].t(), alpha=-1)
        for start, end in spans(first, last, _TILE):
            own = A[start:end, start:end]
            update = A[start:end, :start]
            lower, failed = torch.linalg.cholesky_ex(own - update @ update.t())
            if failed:
                return False
            own.copy_(lower + own.triu(1))
            # Rows of the panel itself take all columns before the tile at once, rows below it those of the panel alone.
            for rows, known in ((slice(end, last), 0), (slice(last, n), first)):
                below = A[rows, start:end]
                if not len(below):
                    continue
                if start > known:
                    below.addmm_(A[rows, known:start], A[start:end, known:start].t(), alpha=-1)
                below.copy_(torch.linalg.solve_triangular(lower.t(), below, upper=True, left=False))
    return True
