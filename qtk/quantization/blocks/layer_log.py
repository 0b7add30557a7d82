"""The records of linears that were quantized, with the errors that their rounding gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qtk.models.spec import Linear
from qtk.quantization.algorithms.grid import round_to_range
from qtk.quantization.blocks.streams import Statistics
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import LayerRecord
from qtk.quantization.scheme_model import LinearScheme

_ROWS_ELEMENTS = 1 << 23  # of a matrix that are in float32 at once


@dataclass(frozen=True)
class RoundedSet:
    """Linears that were quantized as one matrix with the rows of all, in their order.

    prefix: of their block. W: [out, in], what was to be stored. Q: what the quantized matrix stands for beside W, [out, in]
    float32 or still in codes. damping: GPTQ's, None where there was none.
    """

    prefix: str
    members: list[Linear]
    scheme: LinearScheme
    W: torch.Tensor
    Q: torch.Tensor | QuantizedLinear
    method: str
    damping: float | None = None


def layer_records(
    rounded: RoundedSet, statistics: Statistics, dtype: torch.dtype, seconds: float
) -> tuple[LayerRecord, ...]:
    """A record for each member of a set. dtype: of the products; seconds: that each member took."""
    scheme = rounded.scheme
    out_features, in_features = rounded.W.shape
    step = max(1, _ROWS_ELEMENTS // in_features)
    parts = [
        _output_errors(rounded, slice(start, min(start + step, out_features)), statistics, dtype)
        for start in range(0, out_features, step)
    ]
    before, after, energy = (torch.cat(part) for part in zip(*parts, strict=True))
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
    rounded: RoundedSet, rows: slice, statistics: Statistics, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each of these outputs the squared error on the sample tokens, [rows]: with W rounded to nearest on its whole range,
    and as it was rounded; and last the output's energy. Differences are taken in float32, products in `dtype`."""
    W, Q = rounded.W[rows].float(), rounded.Q
    Q = Q.rows(rows.start, rows.stop).dequantize() if isinstance(Q, QuantizedLinear) else Q[rows]
    X, X_float = statistics.sample
    x, x_float = X.to(dtype), X_float.to(dtype)
    from_inputs = (X_float - X).to(dtype) @ W.t().to(dtype) if X_float is not X else X.new_zeros((), dtype=dtype)
    before, after = (
        (from_inputs + x @ (W - stored).to(dtype).t()).float().square().sum(0)
        for stored in (round_to_range(W, rounded.scheme), Q)
    )
    energy = (x_float @ W.to(dtype).t()).float().square().sum(0)
    return before, after, energy.clamp_min(1e-30)
