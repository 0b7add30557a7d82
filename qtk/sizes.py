"""Sizes, printed one way everywhere: memory and files in GB (10**9 bytes), the memory of a GPU in GiB, as GPUs are sold and
as nvidia-smi counts."""

from __future__ import annotations

_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size_text(count: int | float) -> str:
    """A number of bytes for people, in decimal units with three digits: "115 MB", "25.3 GB", "812 bytes"."""
    for unit, factor in _UNITS:
        # From where three digits of the smaller unit would be rounded up to four.
        if count >= 0.9995 * factor:
            amount = count / factor
            digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
            return f"{amount:,.{digits}f} {unit}"
    return f"{count:.0f} bytes"


def gpu_size_text(count: int) -> str:
    """A number of bytes of a GPU's memory: "18.4 GiB"."""
    amount = count / 2**30
    return f"{amount:.{1 if amount >= 1 else 3}f} GiB"
