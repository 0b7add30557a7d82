"""A quantized weight in qtk's one canonical form, whatever container it came from or goes into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizedLinear:
    """W ~ (codes - zeros) * scales, group by group along the input dimension, in natural column order.

    codes: uint8 [out, in], values 0 .. 2**bits - 1.
    scales: float [out, in / group_size]; a symmetric full-range scale may be negative.
    zeros: uint8 [out, in / group_size], or None for symmetric, where the zero point is 2**(bits - 1).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        out_features, in_features = self.codes.shape
        groups = (out_features, in_features // self.group_size)
        if in_features % self.group_size or tuple(self.scales.shape) != groups:
            raise ValueError(
                f"codes {tuple(self.codes.shape)}, group {self.group_size}, scales {tuple(self.scales.shape)}"
            )
        if self.zeros is not None and tuple(self.zeros.shape) != groups:
            raise ValueError(f"zeros {tuple(self.zeros.shape)}, not {groups}")

    @property
    def symmetric(self) -> bool:
        return self.zeros is None

    @property
    def middle(self) -> int:
        """The symmetric zero point: 8 at 4 bits."""
        return 2 ** (self.bits - 1)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight [out, in]. Computed in float32 and rounded once to `dtype` (None: float32)."""

        import torch

        out_features, in_features = self.codes.shape
        codes = self.codes.view(out_features, -1, self.group_size).to(torch.float32)  # a copy
        zeros = float(self.middle) if self.zeros is None else self.zeros.to(torch.float32).unsqueeze(-1)
        codes.sub_(zeros).mul_(self.scales.to(torch.float32).unsqueeze(-1))
        return codes.view(out_features, in_features).to(dtype or torch.float32)

    def signed_codes(self) -> torch.Tensor:
        """int8 [out, in]: codes minus the symmetric zero point, -8..7 at 4 bits. Only for symmetric weights."""

        import torch

        if self.zeros is not None:
            raise ValueError("an asymmetric weight has no signed codes")
        return (self.codes.to(torch.int16) - self.middle).to(torch.int8)

    def rows(self, start: int, stop: int) -> QuantizedLinear:
        """Output rows start..stop-1: a tensor-parallel shard, or one of several fused linears."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return replace(self, codes=self.codes[start:stop], scales=self.scales[start:stop], zeros=zeros)
