"""Tunes a quantized block as a whole: codes, scales and norms together, by gradient descent on the block's own output.

The idea is AutoRound's (Cheng et al., 2023, arXiv:2309.05516): rounding one linear at a time cannot know what the next one
makes of it, the block can. Three things differ. It starts from GPTQ's codes, so a few steps do. Each weight has a
latent value near its code, moved by Adam instead of by signs, so that only codes flip whose gradient keeps its sign.
And each token's error is taken relative to its own size, because the norm that reads it next divides by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qtk.quantization.algorithms.grid import storable_scales
from qtk.quantization.quantized_linear import QuantizedLinear

_NEAR = 0.45  # how far from its code a latent value may start; beyond 0.5 the code flips
_CODE_RATE, _SCALE_RATE, _NORM_RATE = 0.01, 4e-3, 2e-3  # of the first step; they fall to zero linearly


@dataclass(frozen=True)
class Batch:
    """Some rows of the data: x and the wanted output [rows, tokens, hidden], the weight of each token [rows, tokens]
    float32 (0 at padding), and which rows they are."""

    x: torch.Tensor
    wanted: torch.Tensor
    token_weight: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class TunedBlock:
    """The linears and norms that came out, the norms in the dtype that they came in."""

    linears: dict[str, QuantizedLinear]
    norms: dict[str, torch.Tensor]


def relative_error(output: torch.Tensor, wanted: torch.Tensor, token_weight: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of |output - wanted|^2 / |wanted|^2, weighted by the tokens' weights; shapes as in Batch."""
    wanted = wanted.float()
    error = (output.float() - wanted).square().mean(-1) / wanted.square().mean(-1).clamp_min(1e-30)
    return (error * token_weight).sum() / token_weight.sum()


def tune_block(
    block: Callable[[dict[str, torch.Tensor], Batch], torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    linears: Mapping[str, QuantizedLinear],
    batches: Callable[[], Iterable[Batch]],
    steps: int,
    dtype: torch.dtype,
) -> TunedBlock:
    """Tunes the linears, by name, of the block with float weights `weights` ("NAME.weight", norms, biases).

    block: the block's output for weights in `dtype` and a batch. batches: one pass over the data, in a new order at each
    call. Whether the result is better is for the caller to see: it has the outputs that tell.
    """
    norms = {n: w.float() for n, w in weights.items() if n.endswith("norm.weight")}
    fixed = {n: w.to(dtype) for n, w in weights.items() if n not in norms and n.removesuffix(".weight") not in linears}
    tuned = {name: _TunedLinear(linear, weights[f"{name}.weight"].float()) for name, linear in linears.items()}
    growth = {name: torch.zeros_like(norm).requires_grad_() for name, norm in norms.items()}

    def current() -> dict[str, torch.Tensor]:
        result = dict(fixed)
        result |= {f"{name}.weight": linear.weight(dtype) for name, linear in tuned.items()}
        return result | {name: (norm * (1 + growth[name])).to(dtype) for name, norm in norms.items()}

    groups: list[dict[str, Any]] = [
        {"params": [t.latent for t in tuned.values()], "lr": _CODE_RATE},
        {"params": [t.growth for t in tuned.values()], "lr": _SCALE_RATE},
        {"params": list(growth.values()), "lr": _NORM_RATE},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    step = 0
    while step < steps:
        for batch in batches():
            with torch.enable_grad():
                relative_error(block(current(), batch), batch.wanted, batch.token_weight).backward()
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break
    with torch.no_grad():
        return TunedBlock(
            {name: t.result() for name, t in tuned.items()},
            {n: (norm * (1 + growth[n])).to(weights[n].dtype) for n, norm in norms.items()},
        )


class _TunedLinear:
    """A quantized linear under tuning: `latent` [out, in], in units of codes, and `growth` [out, groups] of the scales."""

    def __init__(self, linear: QuantizedLinear, W: torch.Tensor) -> None:
        self.linear = linear
        out_features, in_features = W.shape
        codes = linear.codes.float()
        exact = W.view(out_features, -1, linear.group_size) / linear.scales.unsqueeze(-1) + self._zero()
        # As near to the float weight as the code allows: which way it would like to flip.
        self.latent = codes + (exact.view(out_features, in_features) - codes).clamp_(-_NEAR, _NEAR)
        self.latent.requires_grad_()
        self.growth = torch.zeros_like(linear.scales).requires_grad_()

    def _zero(self) -> torch.Tensor:
        if self.linear.zeros is None:
            return torch.tensor(float(2 ** (self.linear.bits - 1)), device=self.linear.scales.device)
        return self.linear.zeros.float().unsqueeze(-1)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] that the latent values round to, differentiable."""
        scales = self.linear.scales * (1 + self.growth)
        result: torch.Tensor = _Dequantize.apply(self.latent, scales, self._zero(), self.linear.bits, dtype)
        return result

    def result(self) -> QuantizedLinear:
        """What is to be stored."""
        codes = self.latent.detach().round().clamp_(0, 2**self.linear.bits - 1).to(torch.uint8)
        scales = storable_scales(self.linear.scales * (1 + self.growth.detach()))
        return QuantizedLinear(codes, scales, self.linear.zeros, self.linear.bits, self.linear.group_size)


class _Dequantize(torch.autograd.Function):
    """(round(latent) - zero) * scale, with the gradient of a straight line through the rounding (Bengio et al., 2013)."""

    @staticmethod
    def forward(
        ctx: Any, latent: torch.Tensor, scales: torch.Tensor, zero: torch.Tensor, bits: int, dtype: torch.dtype
    ) -> torch.Tensor:
        out_features, in_features = latent.shape
        codes = latent.round().clamp_(0, 2**bits - 1).view(out_features, scales.shape[1], -1) - zero
        ctx.save_for_backward(scales, codes)
        return (codes * scales.unsqueeze(-1)).view(out_features, in_features).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        scales, codes = ctx.saved_tensors
        gradient = gradient.float().view_as(codes)
        toward_latent = (gradient * scales.unsqueeze(-1)).view(codes.shape[0], -1)
        return toward_latent, torch.linalg.vecdot(gradient, codes), None, None, None
