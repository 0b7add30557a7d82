"""The records of linears that were quantized, with the errors that their rounding gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qtk.models.spec import Linear
from qtk.quantization.algorithms.grid import round_to_range
from qtk.quantization.blocks.streams import Statistics
from qtk.quantization.report import LayerRecord
from qtk.quantization.scheme_model import LinearScheme


@dataclass(frozen=True)
class RoundedSet:
    """Linears that were quantized as one matrix with the rows of all, in their order.

    prefix: of their block. W: [out, in] float32, what was to be stored. Q: [out, in], what the quantized matrix stands for
    beside W. damping: GPTQ's, None where there was none.
    """

    prefix: str
    members: list[Linear]
    scheme: LinearScheme
    W: torch.Tensor
    Q: torch.Tensor
    method: str
    damping: float | None = None


def layer_records(
    rounded: RoundedSet, statistics: Statistics, dtype: torch.dtype, seconds: float
) -> tuple[LayerRecord, ...]:
    """A record for each member of a set. dtype: of the products; seconds: that each member took."""
    W, scheme = rounded.W, rounded.scheme
    before, after, energy = _output_errors(W, [round_to_range(W, scheme), rounded.Q], statistics, dtype)
    records, row = [], 0
    for member in rounded.members:
        rows = slice(row, row + member.out_features)
        row = rows.stop
        records.append(
            LayerRecord(
                layer=rounded.prefix + member.name,
                method=rounded.method,
                bits=scheme.bits,
                group_size=scheme.group_size,
                symmetric=scheme.symmetric,
                error_before=float(before[rows].sum() / energy[rows].sum()),
                error_after=float(after[rows].sum() / energy[rows].sum()),
                damping=rounded.damping,
                seconds=round(seconds, 4),
            )
        )
    return tuple(records)


def _output_errors(
    W: torch.Tensor, rounded: list[torch.Tensor], statistics: Statistics, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The squared error of each output [out] on the sample tokens for each rounded weight, and last the outputs' energy.
    Differences are taken in float32, products in `dtype`."""
    X, X_float = statistics.sample
    x, x_float = X.to(dtype), X_float.to(dtype)
    from_inputs = (X_float - X).to(dtype) @ W.t().to(dtype) if X_float is not X else X.new_zeros((), dtype=dtype)
    errors = [(from_inputs + x @ (W - Q).to(dtype).t()).float().square().sum(0) for Q in rounded]
    energy = (x_float @ W.to(dtype).t()).float().square().sum(0)
    return [*errors, energy.clamp_min(1e-30)]
