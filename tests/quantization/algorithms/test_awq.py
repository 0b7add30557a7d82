"""AWQ against a naive float64 version, and its folding against the float model's own outputs."""

from __future__ import annotations

import pytest
import torch

from qtk.models import forward
from qtk.quantization.algorithms.awq import awq, column_scale
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.awq import _FED_BY, AwqBlocks
from qtk.quantization.blocks.streams import Rows, Statistics, Stream
from qtk.quantization.model_weights import ModelWeights
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


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])  # grouped queries; biases; norms of heads
def test_folding_leaves_the_float_block_as_it_was(tiny, tmp_path, variant: str) -> None:
    weights = ModelWeights.open(tiny(variant))
    spec = weights.spec
    block = {name: w.float() for name, w in weights.float_block(1).items()}
    cos, sin = spec.rope.tables(spec.head_dim, 24)
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 24, spec.hidden_size, generator=draw)
    budget = ActivationBudget(1 << 30, tmp_path)
    store = budget.store(2, 24, spec.hidden_size, torch.float32)
    store.write(slice(0, 2), hidden)
    blocks = AwqBlocks(spec, Rows(None, cos, sin), budget, torch.device("cpu"), Stream(store))
    schemes = {linear.name: SYMMETRIC for linear in spec.linears()}
    folded = dict(block)
    for reads, feeder in _FED_BY.items():
        width = next(x.in_features for x in spec.linears() if x.reads == reads)
        X = torch.randn(100, width, generator=draw) * torch.logspace(-1, 1, width)
        stored_as = dict.fromkeys(folded, torch.bfloat16)
        s, _ = blocks._fold(reads, feeder, folded, stored_as, schemes, Statistics(X.t() @ X / 100, None, (X, X)))
        assert s.unique().numel() > 1
    assert not torch.equal(folded["self_attn.v_proj.weight"], block["self_attn.v_proj.weight"])
    # What is folded into norms and biases is stored in bf16: the scales are such that nothing is lost by that.
    stored = {n: w.bfloat16().float() if w.ndim == 1 else w for n, w in folded.items()}
    before, after = (forward.block_forward(spec, w, hidden, cos, sin) for w in (block, stored))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_nothing_is_folded_into_what_stays_in_float(tiny, tmp_path) -> None:
    weights = ModelWeights.open(tiny("llama"))
    spec = weights.spec
    blocks = AwqBlocks(
        spec, Rows(None, *spec.rope.tables(32, 8)), ActivationBudget(0, tmp_path), torch.device("cpu"), None
    )
    schemes = {linear.name: SYMMETRIC for linear in spec.linears()}
    schemes["mlp.up_proj"] = LinearScheme(16, 32, True)
    block = {name: w.float() for name, w in weights.float_block(0).items()}
    for reads in ("mlp_input", "mlp_hidden"):
        width = next(x.in_features for x in spec.linears() if x.reads == reads)
        before = {name: w.clone() for name, w in block.items()}
        stored_as = dict.fromkeys(block, torch.bfloat16)
        s, _ = blocks._fold(reads, _FED_BY[reads], block, stored_as, schemes, Statistics(torch.eye(width), None, ()))
        assert torch.equal(s, torch.ones(width))
        assert all(torch.equal(before[name], w) for name, w in block.items())
