"""AWQ against a naive float64 version."""

from __future__ import annotations

import pytest
import torch

from qtk.quantization.algorithms.awq import awq, column_scale
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.scheme_model import LinearScheme

SYMMETRIC = LinearScheme(4, 32, True)


def problem(kind: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """W [48, 64] and inputs [300, 64] of which a few columns are large, as those that AWQ is made for."""
    draw = torch.Generator().manual_seed(1)
    W, X = torch.randn(48, 64, generator=draw), torch.randn(300, 64, generator=draw)
    X[:, [3, 17, 40]] *= 30
    if kind == "dead columns":
        X[:, [5, 17]] = 0
    elif kind == "constant rows":
        W[:] = torch.linspace(-1, 1, 48)[:, None]
    elif kind == "zero rows":
        W[4] = 0
    elif kind == "rank deficient":
        X = X[:3].repeat(100, 1)
    return W, X


def naive_scale(W: torch.Tensor, X: torch.Tensor, group_size: int) -> torch.Tensor:
    """The search as the paper states it, on the outputs themselves, in float64, symmetric full-range rounding."""
    W, X = W.double(), X.double()

    def rounded(V: torch.Tensor) -> torch.Tensor:
        Q = V.clone()
        for row in Q:
            for start in range(0, len(row), group_size):
                group = row[start : start + group_size]
                group /= (step := -group[group.abs().argmax()] / 8)
                group.copy_(group.round().clamp(-8, 7) * step)
        return Q

    def loss(s: torch.Tensor) -> float:
        return float((X @ W.t() - (X / s) @ rounded(W * s).t()).square().sum())

    size = X.square().mean(0).sqrt()
    strength = torch.stack(
        [torch.cat([part.abs() / part.abs().max() for part in row.split(group_size)]) for row in W]
    ).mean(0)
    candidates = [torch.ones(64, dtype=torch.float64)]
    for step in range(20):
        s = (size ** (step / 20) / (strength ** (1 - step / 20) + 1e-4)).clamp_min(1e-4)
        candidates.append(s / (s.max() * s.min()).sqrt())
    return min(candidates, key=loss)


def test_the_search_equals_the_naive_version() -> None:
    W, X = problem()
    found = column_scale(W, X.t() @ X / 300, SYMMETRIC, shared=torch.arange(64))
    torch.testing.assert_close(found.double(), naive_scale(W, X, 32), rtol=1e-4, atol=1e-6)
    assert not torch.equal(found, torch.ones(64))


@pytest.mark.parametrize("scheme", [SYMMETRIC, LinearScheme(4, 32, False)], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", ["", "dead columns", "constant rows", "zero rows", "rank deficient"])
def test_scaling_never_loses_and_stays_finite(kind: str, scheme: LinearScheme) -> None:
    W, X = problem(kind)
    H = X.t() @ X / 300
    s = column_scale(W, H, scheme, shared=torch.arange(64))
    assert torch.isfinite(s).all()
    assert (s > 0).all()

    def error(Q: torch.Tensor) -> float:
        return float((X @ (W - Q).t()).square().sum())

    scaled = awq(W * s, H / (s[:, None] * s), scheme).dequantize() / s
    assert error(scaled) <= 1.05 * error(rtn(W, scheme).dequantize()) + 1e-6
    if kind == "":
        assert error(scaled) < 0.5 * error(rtn(W, scheme).dequantize())


def test_columns_fed_by_one_channel_share_their_scale() -> None:
    W, X = problem()
    shared = torch.arange(64) % 16
    s = column_scale(W, X.t() @ X / 300, SYMMETRIC, shared=shared)
    assert all(s[shared == channel].unique().numel() == 1 for channel in range(16))
    assert s.unique().numel() > 1
