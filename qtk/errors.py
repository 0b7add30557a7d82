"""The few error classes of qtk. Each carries the exit code that the command line returns.

A message is a sentence: what is wrong, where (file, tensor, line), and what to do. One error names all offenders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?<=\blayers\.)\d+\b|(?<=\bblk\.)\d+\b")


class QtkError(Exception):
    """Base of every error that is written for the user. Exit code 1 is reserved for bugs."""

    exit_code = 1


class InputError(QtkError):
    """The input or the options are wrong (exit code 2)."""

    exit_code = 2


class InputChanged(InputError):
    """An input was written to while it was read: nothing that was made of it can be continued."""


class GateFailed(QtkError):
    """A check with a threshold did not pass (exit code 3)."""

    exit_code = 3


class MachineError(QtkError):
    """The machine lacks something: a GPU, a toolkit, a compiler, disk or memory (exit code 4)."""

    exit_code = 4


def listing(offenders: Iterable[object], limit: int = 20) -> str:
    """Offenders as indented lines: at most `limit` of them, and the number of the rest. Those that differ in the number of
    their layer only are one line (`by_layer`)."""
    rows = by_layer(str(o) for o in offenders)
    lines = [f"  {row}" for row in rows[:limit]]
    if len(rows) > limit:
        lines.append(f"  ... and {len(rows) - limit} more")
    return "\n".join(lines)


def by_layer(lines: Iterable[str]) -> list[str]:
    """The lines, with those that differ in the number of a layer only written once, in the place of the first of them:
    model.layers.{0-2,5}.mlp.up_proj."""
    layers: dict[str, list[int]] = {}
    for line in lines:
        numbers = {int(number) for number in _LAYER.findall(line)}
        if len(numbers) == 1:
            pattern = _LAYER.sub("\0", line)
            layers.setdefault(pattern, []).extend(numbers)
        else:
            layers.setdefault(line, [])
    return [pattern.replace("\0", _ranges(numbers)) for pattern, numbers in layers.items()]


def _ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return text if text.isdigit() else f"{{{text}}}"
