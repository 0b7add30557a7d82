"""Grid search, RTN and GPTQ against naive float64 versions, on random and on degenerate matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qtk.quantization.algorithms.cholesky import SingularHessian, damped_cholesky_, reorder_, solve_
from qtk.quantization.algorithms.gptq import (
    DAMPING_LADDER,
    NUMPY_CALLS,
    TORCH_CALLS,
    Drift,
    Elementwise,
    damping_ladder,
    gptq,
)
from qtk.quantization.algorithms.grid import round_to_grid, search_grid
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.scheme_model import LinearScheme

SYMMETRIC = LinearScheme(4, 32, True)
POSITIVE = LinearScheme(4, 32, True, signed_scales=False)
ASYMMETRIC = LinearScheme(4, 32, False)
both_kinds = pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])


def problem(
    out_features: int = 24, in_features: int = 64, tokens: int = 400, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs of very unequal size."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(in_features, in_features, generator=draw) * 0.3 + torch.eye(in_features)
    X = torch.randn(tokens, in_features, generator=draw) @ mix * torch.logspace(-1, 1, in_features)
    return torch.randn(out_features, in_features, generator=draw), X.t() @ X / tokens


def naive_gptq(
    W: torch.Tensor, H: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group_size: int, damp: float
) -> torch.Tensor:
    """GPTQ as the paper states it, one weight row at a time in float64, inverting the remaining Hessian at every column."""
    W, H = W.double().clone(), H.double()
    n = H.shape[0]
    order = torch.argsort(H.diagonal(), descending=True, stable=True).tolist()
    Hinv = torch.linalg.inv(H + damp * H.diagonal().mean() * torch.eye(n, dtype=torch.float64))
    codes = torch.zeros_like(W)
    left = list(order)
    for j in order:
        s, z = scales[:, j // group_size].double(), zeros[:, j // group_size].double()
        codes[:, j] = torch.clamp(torch.round(W[:, j] / s + z), 0, 15)
        error = (W[:, j] - (codes[:, j] - z) * s) / Hinv[j, j]
        W -= error[:, None] * Hinv[j, :][None, :]
        # Take column j out of the problem: the inverse Hessian of what is left.
        Hinv = Hinv - torch.outer(Hinv[:, j], Hinv[j, :]) / Hinv[j, j]
        left.remove(j)
        Hinv[j, :] = Hinv[:, j] = 0
    return codes.to(torch.uint8)


@pytest.mark.parametrize("calls", [NUMPY_CALLS, TORCH_CALLS], ids=["NumPy's, as on a CPU", "torch's, as on a GPU"])
@both_kinds
@pytest.mark.parametrize("in_features", [64, 320, 576])  # more than one block of columns, and more than one span
def test_gptq_equals_the_naive_version(scheme: LinearScheme, in_features: int, calls: Elementwise) -> None:
    W, H = problem(in_features=in_features, tokens=2000)
    linear = gptq(W, H.clone(), scheme, elementwise=calls).linear
    zeros = torch.full(linear.scales.shape, 8) if linear.zeros is None else linear.zeros
    expected = naive_gptq(W, H, linear.scales, zeros, 32, DAMPING_LADDER[0])
    # float32 against float64: a weight on the edge between two codes may fall the other way, and what follows with it.
    assert (linear.codes != expected).float().mean() < 0.01


def error(W: torch.Tensor, Q: torch.Tensor, H: torch.Tensor) -> float:
    E = (W - Q).double()
    return float((E @ H.double() * E).sum())


@both_kinds
def test_gptq_loses_much_less_than_rounding(scheme: LinearScheme) -> None:
    W, H = problem()
    ours = gptq(W, H.clone(), scheme).linear.dequantize()
    assert error(W, ours, H) < 0.6 * error(W, rtn(W, scheme).dequantize(), H)


def test_correction_takes_back_error_in_the_inputs() -> None:
    draw = torch.Generator().manual_seed(3)
    X_float = torch.randn(1000, 64, generator=draw) @ torch.randn(64, 64, generator=draw)
    X = X_float + X_float @ torch.randn(64, 64, generator=draw) * 0.05  # a systematic error, as earlier rounding makes
    W = torch.randn(16, 64, generator=draw)
    H, C = X.t() @ X / 1000, (X_float - X).t() @ X / 1000

    def loss(linear) -> float:
        return float((X_float @ W.t() - X @ linear.dequantize().t()).square().sum())

    plain = gptq(W, H.clone(), SYMMETRIC).linear
    corrected = gptq(W, H, SYMMETRIC, drift=Drift(C), alpha=1.0).linear
    assert loss(corrected) < 0.5 * loss(plain)
    # With alpha 1 and no damping to speak of the target is the least-squares solution itself.
    target = torch.linalg.lstsq(X.double(), X_float.double() @ W.double().t()).solution.t()
    X, X_float, W = X.double(), X_float.double(), W.double()
    closed_form = W + W @ (X_float - X).t() @ X @ torch.linalg.inv(X.t() @ X)
    torch.testing.assert_close(closed_form, target, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n", [64, 600, 1400])  # more than one tile, and more than one panel
def test_cholesky_in_place_its_ladder_and_its_solves(n: int) -> None:
    _, H = problem(in_features=n, tokens=3000)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    damped = (H + DAMPING_LADDER[0] * H.diagonal().mean() * torch.eye(n))[order][:, order]
    own = H.clone()
    reorder_(own, order)
    assert torch.equal(own, H[order][:, order])
    assert damped_cholesky_(own, DAMPING_LADDER) == DAMPING_LADDER[0]
    L = own.tril()
    assert (L @ L.t() - damped).norm() < 1e-5 * damped.norm()
    B = torch.randn(7, n, generator=torch.Generator().manual_seed(2))
    X = B.clone()
    solve_(X, own)
    assert (X @ damped - B).norm() < 1e-3 * B.norm()
    for place in ((40, 3), (n - 1, n - 2)):
        one_bad = H.clone()
        one_bad[place] = one_bad[place[::-1]] = float("inf")
        with pytest.raises(SingularHessian):
            damped_cholesky_(one_bad, DAMPING_LADDER)
    with pytest.raises(SingularHessian):
        damped_cholesky_(torch.full((8, 8), float("nan")), DAMPING_LADDER)


def test_few_tokens_are_damped_more() -> None:
    assert damping_ladder(3 * 1024, 1024) == DAMPING_LADDER
    assert damping_ladder(1024, 1024) == pytest.approx([0.15, 0.45, 1.5, 4.5])
    assert damping_ladder(1, 1024)[0] == damping_ladder(128, 1024)[0] == 0.5


def test_more_damping_of_few_tokens_loses_less_on_others() -> None:
    """Of a Hessian of a third of the tokens that there are columns, on inputs that it has not seen."""
    draw = torch.Generator().manual_seed(5)
    mix = torch.randn(192, 192, generator=draw) * torch.linspace(0.05, 1, 192)
    few, others = (torch.randn(tokens, 192, generator=draw) @ mix for tokens in (64, 4000))
    W = torch.randn(96, 192, generator=draw)

    def loss(ladder: tuple[float, ...]) -> float:
        linear = gptq(W, few.t() @ few / 64, SYMMETRIC, ladder=ladder).linear
        return float((others @ (linear.dequantize() - W).t()).square().mean())

    assert loss(damping_ladder(64, 192)) < 0.95 * loss(DAMPING_LADDER)


@pytest.mark.parametrize("n", [64, 600])
def test_a_failed_rung_of_the_ladder_leaves_no_trace(n: int) -> None:
    _, H = problem(in_features=n, tokens=3000)
    indefinite = H - 0.06 * H.diagonal().mean() * torch.eye(n)
    found, alone = indefinite.clone(), indefinite.clone()
    damp = damped_cholesky_(found, DAMPING_LADDER)
    assert damp > DAMPING_LADDER[0]
    damped_cholesky_(alone, (damp,))
    assert torch.equal(found.tril(), alone.tril())


@pytest.mark.parametrize("in_features", [64, 320])
def test_drift_of_the_outputs_corrects_as_that_of_the_inputs(in_features: int) -> None:
    W, H = problem(in_features=in_features, tokens=2000)
    C = 0.05 * H @ torch.randn(in_features, in_features, generator=torch.Generator().manual_seed(5)) / in_features**0.5
    by_inputs = gptq(W, H.clone(), SYMMETRIC, drift=Drift(C.clone())).linear
    by_outputs = gptq(W, H.clone(), SYMMETRIC, drift=Drift(W @ C, of_outputs=True)).linear
    plain = gptq(W, H.clone(), SYMMETRIC).linear
    assert (by_inputs.codes != by_outputs.codes).float().mean() < 0.01
    assert (by_inputs.codes != plain.codes).float().mean() > 0.05


@both_kinds
@pytest.mark.parametrize(
    "kind", ["dead columns", "rank deficient", "constant rows", "outliers", "one group", "zero rows", "no input"]
)
def test_degenerate_problems_stay_sane(kind: str, scheme: LinearScheme) -> None:
    W, H = problem()
    if kind == "one group":
        scheme = replace(scheme, group_size=64)
    if kind == "dead columns":
        H[:, 5] = H[5, :] = H[:, 40] = H[40, :] = 0
    elif kind == "rank deficient":
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
        H = x.t() @ x
    elif kind == "constant rows":
        W[:] = torch.linspace(-1, 1, 24)[:, None]
    elif kind == "outliers":
        W[3, 7], W[5, 60] = 400.0, -300.0
    elif kind == "zero rows":
        W[4] = 0
    elif kind == "no input":
        H = torch.zeros(64, 64)
    result = gptq(W, H.clone(), scheme)
    linear, back = result.linear, result.linear.dequantize()
    assert torch.isfinite(back).all()
    assert linear.codes.max() <= 15
    if kind == "zero rows":
        assert (back[4] == 0).all()
    if kind == "no input":  # every column is then rounded to nearest on the grid that was found
        assert torch.equal(linear.codes, round_to_grid(W, linear.scales, linear.zeros, scheme))
        return
    nearest = rtn(W, scheme).dequantize()
    assert error(W, back, H) <= 1.001 * error(W, nearest, H) + 1e-9
    if kind == "dead columns":  # what no calibration text has reached may be reached in use
        unreached = [5, 40]
        assert (back - W)[:, unreached].norm() < 0.3 * W[:, unreached].norm()
    # On the same grid and with the same damping the paper's own loop, in float64, does no better.
    zeros = torch.full(linear.scales.shape, 8) if linear.zeros is None else linear.zeros
    codes = naive_gptq(W, H, linear.scales, zeros, scheme.group_size, result.damping)
    middle, scales = (x.float().repeat_interleave(scheme.group_size, 1) for x in (zeros, linear.scales))
    paper = (codes.float() - middle) * scales
    assert error(W, back, H) <= 1.05 * error(W, paper, H) + 1e-9


def brute_force(w: torch.Tensor, H: torch.Tensor) -> float:
    """The least error of one group's output over a very fine grid of signed scales, float64."""
    w, H = w.double(), H.double()
    largest = float(w.abs().max())
    scales = torch.cat([torch.linspace(0.4, 1.05, 1500) * largest / 7.5 * sign for sign in (1, -1)]).double()
    D = w - (w[None] / scales[:, None]).round().clamp(-8, 7) * scales[:, None]
    return float((D @ H * D).sum(-1).min())


@pytest.mark.parametrize(
    ("kind", "thorough", "within"), [("columns", False, 1.06), ("columns", True, 1.03), ("blocks", True, 1.25)]
)
def test_symmetric_search_comes_close_to_brute_force(kind: str, thorough: bool, within: float) -> None:
    draw = torch.Generator().manual_seed(1)
    W, d = torch.randn(40, 64, generator=draw), torch.rand(64, generator=draw) ** 3
    X = torch.randn(300, 64, generator=draw) @ torch.randn(64, 64, generator=draw)
    H = X.t() @ X / 300 if kind == "blocks" else d.diag()
    scheme = LinearScheme(4, 64, True)
    scales, _ = search_grid(W, H[None] if kind == "blocks" else d, scheme, thorough=thorough)
    D = (W - (round_to_grid(W, scales, None, scheme).float() - 8) * scales).double()
    best = sum(brute_force(row, H) for row in W)
    assert float((D @ H.double() * D).sum()) / best < within


@both_kinds
def test_blocks_of_a_diagonal_hessian_give_the_same_scales(scheme: LinearScheme) -> None:
    W, H = problem()
    d = H.diagonal()
    blocks = torch.stack([d[:32].diag(), d[32:].diag()])
    by_blocks, by_columns = (search_grid(W, importance, scheme) for importance in (blocks, d + 0.01 * d.mean()))
    torch.testing.assert_close(by_blocks, by_columns, rtol=1e-3, atol=1e-3)


def test_scales_are_positive_where_a_runtime_takes_no_others() -> None:
    W, H = problem()
    for linear in (rtn(W, POSITIVE), gptq(W, H.clone(), POSITIVE).linear):
        assert (linear.scales > 0).all()
    signed = gptq(W, H, SYMMETRIC).linear
    assert (signed.scales < 0).any()


def test_asymmetric_search_beats_min_max_and_keeps_zero_points_storable() -> None:
    draw = torch.Generator().manual_seed(2)
    W, d = torch.rand(40, 128, generator=draw) * 2 - 0.3, torch.rand(128, generator=draw) ** 3
    scales, zeros = search_grid(W, d, ASYMMETRIC)
    assert int(zeros.min()) >= 1
    assert int(zeros.max()) <= 15
    groups = W.view(40, 4, 32)
    step = (groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)) / 15
    zero = (-groups.amin(-1).clamp_max(0) / step).round().clamp(1, 15)

    def loss(s: torch.Tensor, z: torch.Tensor) -> float:
        codes = round_to_grid(W, s, z.to(torch.uint8), ASYMMETRIC).view(40, 4, 32).float()
        back = (codes - z.float().unsqueeze(-1)) * s.unsqueeze(-1)
        return float((d.view(4, 32) * (groups - back).square()).sum())

    assert loss(scales, zeros) < loss(step, zero)
