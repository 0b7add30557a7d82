"""Numbers in sentences and tables: with the noun in its form, and sizes in the unit that suits them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 row", "2 rows": `noun` in the singular, of those that form the plural with an s, or with -ies."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def size(count: int) -> str:
    """Bytes as "114.5 MB" or, from a thousand of these on, "25.28 GB" (powers of ten)."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
