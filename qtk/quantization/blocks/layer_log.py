"""What the log says of each linear, and the errors that it gives."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qtk.models.spec import Linear
from qtk.quantization.algorithms.grid import round_to_range
from qtk.quantization.blocks.streams import Statistics
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme


@dataclass(frozen=True)
class LayerRecord:
    """What the log says of one linear. Errors are shares of the output's energy on sample tokens of the calibration text,
    |W X_float - Q X|^2 / |W X_float|^2: `error_before` with W rounded to nearest on each group's whole range,
    `error_after` with what GPTQ or AWQ made of it. Both include what earlier linears did to the inputs X where the float
    inputs are followed beside them. None without calibration. The block's errors are given where it was tuned as a
    whole: the mean over tokens of |output - wanted|^2 / |wanted|^2."""

    layer: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    error_before: float | None
    error_after: float | None
    damping: float | None
    seconds: float
    block_error_before: float | None = None
    block_error_after: float | None = None


def log_line(record: LayerRecord, peak_memory_bytes: int) -> dict[str, Any]:
    """The record as it goes into the log; a figure that is no number becomes None, which JSON can say."""
    values = {**asdict(record), "peak_memory_bytes": peak_memory_bytes}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def layer_records(
    prefix: str,
    members: list[Linear],
    scheme: LinearScheme,
    W: torch.Tensor,
    stacked: QuantizedLinear,
    statistics: Statistics,
    *,
    method: str,
    damping: float | None,
    seconds: float,
    dtype: torch.dtype,
    unscaled: torch.Tensor | None = None,
) -> list[LayerRecord]:
    """Of each member of a set that was quantized as one matrix W [out, in] with the rows of all, in their order.

    unscaled: what the quantized weight stands for beside W, where it was scaled before (None: its own floats)."""
    nearest = round_to_range(W, scheme)
    before, after, energy = _output_errors(
        W, [nearest, stacked.dequantize() if unscaled is None else unscaled], statistics, dtype
    )
    records, row = [], 0
    for member in members:
        rows = slice(row, row + member.out_features)
        row = rows.stop
        records.append(
            LayerRecord(
                layer=prefix + member.name,
                method=method,
                bits=scheme.bits,
                group_size=scheme.group_size,
                symmetric=scheme.symmetric,
                error_before=float(before[rows].sum() / energy[rows].sum()),
                error_after=float(after[rows].sum() / energy[rows].sum()),
                damping=damping,
                seconds=round(seconds / len(members), 4),
            )
        )
    return records


def _output_errors(
    W: torch.Tensor, rounded: list[torch.Tensor], statistics: Statistics, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The squared error of each output [out] on the sample tokens for each rounded weight, and at last the outputs'
    energy. Differences are taken in float32, products in `dtype`."""
    X, X_float = statistics.sample
    x, x_float = X.to(dtype), X_float.to(dtype)
    from_inputs = (X_float - X).to(dtype) @ W.t().to(dtype) if X_float is not X else X.new_zeros((), dtype=dtype)
    errors = [(from_inputs + x @ (W - Q).to(dtype).t()).float().square().sum(0) for Q in rounded]
    energy = (x_float @ W.to(dtype).t()).float().square().sum(0)
    return [*errors, energy.clamp_min(1e-30)]
