"""The folding of AWQ's scales, against the float model's own outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qtk.models import forward
from qtk.models.spec import ModelSpec
from qtk.quantization.blocks.folding import FED_BY, fold_scales
from qtk.quantization.blocks.quantized import FloatBlock
from qtk.quantization.blocks.streams import Statistics
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import FLOAT, LinearScheme

SYMMETRIC = LinearScheme(4, 32, True)


def float_block(weights: ModelWeights, layer: int) -> FloatBlock:
    schemes = {linear.name: SYMMETRIC for linear in weights.spec.linears()}
    return FloatBlock(layer, weights.float_block(layer), schemes)


def width(spec: ModelSpec, reads: str) -> int:
    return next(linear.in_features for linear in spec.linears() if linear.reads == reads)


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])  # grouped queries; biases; norms of heads
def test_folding_leaves_the_float_block_as_it_was(tiny, variant: str) -> None:
    weights = ModelWeights.open(tiny(variant))
    spec, block = weights.spec, float_block(weights, 1)
    cos, sin = spec.rope.tables(spec.head_dim, 24)
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 24, spec.hidden_size, generator=draw)
    before = {name: weight.float() for name, weight in block.weights.items()}
    folded = dict(before)
    for reads in FED_BY:
        size = width(spec, reads)
        X = torch.randn(100, size, generator=draw) * torch.logspace(-1, 1, size)
        fold = fold_scales(spec, block, reads, folded, Statistics(X.t() @ X / 100, None, (X, X), 100))
        assert fold.columns.unique().numel() > 1
        folded |= fold.weights
    assert not torch.equal(folded["self_attn.v_proj.weight"], before["self_attn.v_proj.weight"])
    # What is folded into norms and biases is stored in bf16: the scales are such that nothing is lost by that.
    stored = {n: w.bfloat16().float() if w.ndim == 1 else w for n, w in folded.items()}
    expected, output = (forward.block_forward(spec, w, hidden, cos, sin) for w in (before, stored))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reads", ["mlp_input", "mlp_hidden"])  # a member of the set stays in float; its feeder does
def test_nothing_is_folded_into_what_stays_in_float(tiny, reads: str) -> None:
    weights = ModelWeights.open(tiny("llama"))
    block = float_block(weights, 0)
    block = replace(block, schemes={**block.schemes, "mlp.up_proj": FLOAT})
    floats = {name: weight.float() for name, weight in block.weights.items()}
    size = width(weights.spec, reads)
    X = torch.ones(1, size)
    fold = fold_scales(weights.spec, block, reads, floats, Statistics(torch.eye(size), None, (X, X), 100))
    assert torch.equal(fold.columns, torch.ones(size))
    assert not fold.weights
