"""Several languages of one suite as one: the mean over problems, each of which is asked in every language.

The tasks of one problem in several languages are not independent observations, so a problem counts once: with the mean of
its tasks, and with the mean of their changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r"\d+")


def problem_means(languages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """problem -> the mean of its tasks' figures, over the languages that have it. languages: task_id -> figure."""
    found: dict[str, list[float]] = {}
    for figures, problems in zip(languages, _problems(languages), strict=True):
        for problem, figure in zip(problems, figures.values(), strict=True):
            found.setdefault(problem, []).append(figure)
    return {problem: math.fsum(figures) / len(figures) for problem, figures in found.items()}


def _problems(languages: Sequence[Iterable[str]]) -> list[list[str]]:
    """The problem of each task by its number ("Go/12", "HumanEval_12_flip_case"), where numbers tell the tasks of a language apart;
    else by the whole id."""
    ids = [list(language) for language in languages]
    numbers = [[_number(task) for task in language] for language in ids]
    apart = all(None not in language and len(set(language)) == len(language) for language in numbers)
    return [[f"problem {number}" for number in language] for language in numbers] if apart else ids


def _number(task: str) -> int | None:
    """The first number after the last slash: what stands before it is the language or the suite."""
    match = _NUMBER.search(task.rpartition("/")[2])
    return int(match[0]) if match else None
