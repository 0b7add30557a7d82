"""Numbers in sentences, with the noun in its form. Sizes are in qtk/sizes.py."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 row", "2 rows": `noun` in the singular, of those that form the plural with an s, or with -ies."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def duration_text(seconds: float) -> str:
    """A time for people: "4.2 s", "3 min", "5.8 hours"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
