"""Axes: where a value lies between the ends, and which round values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from low to high with its ticks, linear or logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where the value lies, from 0 at the low end to 1 at the high end; a value beyond them lies at the end."""
        low, high, place = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low)))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (place - low) / (high - low)))


def linear_scale(
    values: Iterable[float], *, most_ticks: int = 5, least: float | None = None, most: float | None = None
) -> Scale:
    """Round ends around the values, and round ticks 1, 2, 5, 10, 20, 50 ... apart. least, most: the ends may not go beyond."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = _round_step((high - low) / max(1, most_ticks - 1))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(number * step for number in range(first, last + 1)))


def log_scale(values: Iterable[float]) -> Scale:
    """Whole decades around the positive ones of the values; at most five of them are written."""
    found = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    high = max(high, low + 1)
    step = max(1, math.ceil((high - low) / 4))
    return Scale(10.0**low, 10.0**high, tuple(10.0**power for power in range(low, high + 1, step)), logarithmic=True)


def tick_text(value: float) -> str:
    """A tick as it is written."""
    if value == 0:
        return "0"
    sign = "\N{MINUS SIGN}" if value < 0 else ""
    if 1e-3 <= abs(value) < 1e5:
        return sign + f"{abs(value):.10f}".rstrip("0").rstrip(".")
    return sign + f"{abs(value):.0e}".replace("e-0", "e-").replace("e+0", "e")


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
