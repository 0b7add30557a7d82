"""Figures as a report writes them."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"  # as wide as a plus


def figure(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, in scientific notation where it is very small or large; a dash for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        magnitude = 0 if value == 0 else math.floor(math.log10(abs(value)))
        return f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return f"{value:.{digits - 1}e}"


def with_error(value: float, error: float | None, digits: int = 3) -> str:
    """ "0.0812 ± 0.0030": the error with two digits, and none where it is not known or zero."""
    return figure(value, digits) + (f" ± {figure(error, 2)}" if error else "")


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign."""
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    return f"{sign}{figure(abs(value), digits)}"
