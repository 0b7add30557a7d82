"""Linears that do not learn and are held in 4 bits: dequantized for each product, forward and backward, and forgotten again.

Two kinds of storage: NF4 as QLoRA has it, and the codes of an INT4 checkpoint just as it will be deployed. Both dequantize to
what `qtk merge` and the engines take of them, so that an adapter sees the weights that it will be merged into or run beside.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from qtk.adapters import nf4
from qtk.quantization.quantized_linear import QuantizedLinear

_QLORA_DTYPE = torch.bfloat16  # QLoRA rounds the base as loaded in this dtype, and dequantizes to it


class StoredWeight(torch.nn.Module):
    """A weight [out, in] held as codes in buffers."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] as floats."""
        raise NotImplementedError


class Nf4Weight(StoredWeight):
    """NF4 with double quantization: half a byte a weight, and a byte for each 64 of them."""

    codes: torch.Tensor
    magnitudes: torch.Tensor
    scales: torch.Tensor
    offset: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        """Rounds a float weight [out, in]."""
        out_features, in_features = weight.shape
        super().__init__((out_features, in_features))
        weight = weight.to(_QLORA_DTYPE)
        absmax = nf4.block_absmax(weight)
        magnitudes = nf4.round_magnitudes(absmax)
        codes = nf4.nearest_codes(weight, absmax).view(-1, 2)
        self.register_buffer("codes", codes[:, 0] << 4 | codes[:, 1])
        self.register_buffer("magnitudes", magnitudes.codes)
        self.register_buffer("scales", magnitudes.scales)
        self.register_buffer("offset", magnitudes.offset)
        levels = torch.tensor(nf4.LEVELS, dtype=torch.float32)
        # Both levels of each byte, so that one look-up gives two weights.
        self.register_buffer("pairs", torch.cartesian_prod(levels, levels).contiguous(), persistent=False)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        restored = nf4.RoundedMagnitudes(self.magnitudes, self.scales, self.offset).restored()
        values = self.pairs.index_select(0, self.codes.int()).view(-1, nf4.BLOCK).mul_(restored.unsqueeze(1))
        out_features, in_features = self.shape
        return values.view(-1)[: out_features * in_features].view(self.shape).to(_QLORA_DTYPE).to(dtype)


class DeployedWeight(StoredWeight):
    """The codes, scales and zero points of a quantized checkpoint, codes of 4 bits two to a byte."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def __init__(self, weight: QuantizedLinear) -> None:
        out_features, in_features = weight.codes.shape
        super().__init__((out_features, in_features))
        self.bits, self.group_size = weight.bits, weight.group_size
        self.packed = weight.bits <= 4 and in_features % 2 == 0
        codes = weight.codes
        self.register_buffer("codes", codes[:, 0::2] << 4 | codes[:, 1::2] if self.packed else codes)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        codes = self.codes
        if self.packed:
            codes = torch.stack((codes >> 4, codes & 15), dim=-1).view(self.shape)
        return QuantizedLinear(codes, self.scales, self.zeros, self.bits, self.group_size).dequantize(dtype)


class FrozenLinear(torch.nn.Linear):
    """A linear whose weight is a `StoredWeight`. `weight` dequantizes it anew at each access; nothing of it learns."""

    def __init__(self, stored: StoredWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)  # a Linear's own would make a float weight
        self.out_features, self.in_features = stored.shape
        self.stored, self.compute_dtype = stored, dtype
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.stored.dense(self.compute_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _FrozenProduct.apply(input.to(self.compute_dtype), self.stored)
        return product if self.bias is None else product + self.bias


class _FrozenProduct(torch.autograd.Function):
    """x W^T, whose backward pass dequantizes W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stored: StoredWeight) -> torch.Tensor:
        ctx.stored = stored
        return F.linear(x, stored.dense(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        return grad @ ctx.stored.dense(grad.dtype), None
