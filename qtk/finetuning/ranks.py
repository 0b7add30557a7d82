"""Which of several processes this one is, as torchrun says in the environment. Loads no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process among those of one training, from 0."""
    return _number("RANK", 0)


def processes() -> int:
    """How many processes one training has."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
