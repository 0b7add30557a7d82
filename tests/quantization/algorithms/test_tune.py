"""Tuning a block as a whole: gradients against differences, what it gains, what it must never lose."""

from __future__ import annotations

import pytest
import torch

from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.algorithms.tune import Batch, _Dequantize, relative_error, tune_block
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme


def test_gradients_of_scales_are_those_of_the_dequantized_weight() -> None:
    latent = (torch.rand(6, 64) * 15).requires_grad_()
    scales, zero = torch.rand(6, 2).add_(0.1).requires_grad_(), torch.full((6, 2, 1), 7.0)
    upstream = torch.randn(6, 64)
    (_Dequantize.apply(latent, scales, zero, 4, torch.float32) * upstream).sum().backward()
    codes = latent.detach().round().view(6, 2, 32) - zero
    expected = (upstream.view(6, 2, 32) * codes).sum(-1)
    torch.testing.assert_close(scales.grad, expected)
    # Straight through the rounding: as if the weight were (latent - zero) * scale.
    torch.testing.assert_close(latent.grad, upstream * scales.detach().repeat_interleave(32, 1))


def test_the_relative_error_gives_every_token_the_same_say() -> None:
    wanted = torch.randn(1, 4, 8) * torch.tensor([1.0, 100.0, 1.0, 1.0])[None, :, None]
    output = wanted * 1.1
    output[0, 3] = 0  # padding: weight 0
    assert float(relative_error(output, wanted, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))) == pytest.approx(0.01, rel=1e-4)


def two_linears(symmetric: bool) -> tuple[dict[str, torch.Tensor], dict[str, QuantizedLinear], list[Batch]]:
    """A block that rounding one linear at a time serves badly: a norm, a linear, and one that takes its output."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        "norm.weight": torch.ones(64),
        "up.weight": torch.randn(64, 64, generator=draw) / 8,
        "up.bias": torch.randn(64, generator=draw) / 8,
        "down.weight": torch.randn(64, 64, generator=draw) / 8,
    }
    linears = {name: rtn(weights[f"{name}.weight"], LinearScheme(4, 32, symmetric)) for name in ("up", "down")}
    mix = torch.randn(64, 64, generator=draw)
    batches = []
    for index in range(8):
        x = torch.randn(4, 32, 64, generator=draw) @ mix / 8
        wanted = block(weights, Batch(x, x, torch.ones(4, 32), torch.arange(4)))
        batches.append(Batch(x, wanted, torch.ones(4, 32), torch.arange(4) + 4 * index))
    return weights, linears, batches


def block(weights: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    x = batch.x.to(weights["norm.weight"].dtype) * weights["norm.weight"]
    return torch.tanh(x @ weights["up.weight"].t() + weights["up.bias"]) @ weights["down.weight"].t()


@pytest.mark.parametrize("symmetric", [True, False])
def test_tuning_lowers_the_error_also_on_data_that_it_did_not_see(symmetric: bool) -> None:
    weights, linears, batches = two_linears(symmetric)
    tuned = tune_block(block, weights, linears, lambda: batches[:6], 60, torch.float32)
    old = weights | {f"{n}.weight": linear.dequantize() for n, linear in linears.items()}
    new = weights | {f"{n}.weight": linear.dequantize() for n, linear in tuned.linears.items()} | tuned.norms

    def error(of: dict[str, torch.Tensor], on: list[Batch]) -> float:
        return sum(float(relative_error(block(of, b), b.wanted, b.token_weight)) for b in on)

    assert error(new, batches[:6]) < 0.9 * error(old, batches[:6])
    assert all(error(new, [unseen]) < error(old, [unseen]) for unseen in batches[6:])
    assert any(not torch.equal(tuned.linears[n].codes, linears[n].codes) for n in linears)
    for name, linear in tuned.linears.items():
        assert linear.codes.max() <= 15
        assert torch.equal(linear.scales, linear.scales.half().float()), "scales are what float16 can hold"
        if not symmetric:
            assert torch.equal(linear.zeros, linears[name].zeros)


def test_the_same_data_give_the_same_bits() -> None:
    weights, linears, batches = two_linears(True)
    first, second = (tune_block(block, weights, linears, lambda: batches, 10, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first.linears[n].codes, second.linears[n].codes) for n in linears)
    assert all(torch.equal(first.linears[n].scales, second.linears[n].scales) for n in linears)
