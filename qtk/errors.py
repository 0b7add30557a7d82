"""The few error classes of qtk. Each carries the exit code that the command line returns.

A message is a sentence: what is wrong, where (file, tensor, line), and what to do. One error names all offenders.
"""

from __future__ import annotations

from collections.abc import Iterable


class QtkError(Exception):
    """Base of every error that is written for the user. Exit code 1 is reserved for bugs."""

    exit_code = 1


class InputError(QtkError):
    """The input or the options are wrong (exit code 2)."""

    exit_code = 2


class GateFailed(QtkError):
    """A check with a threshold did not pass (exit code 3)."""

    exit_code = 3


class MachineError(QtkError):
    """The machine lacks something: a GPU, a toolkit, a compiler, disk or memory (exit code 4)."""

    exit_code = 4


def listing(offenders: Iterable[object], limit: int = 20) -> str:
    """Offenders as indented lines: at most `limit` of them, and the number of the rest."""
    rows = [str(o) for o in offenders]
    lines = [f"  {row}" for row in rows[:limit]]
    if len(rows) > limit:
        lines.append(f"  ... and {len(rows) - limit} more")
    return "\n".join(lines)
