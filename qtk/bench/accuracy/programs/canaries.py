"""Canaries: tasks whose tests contradict themselves, so that no answer can solve them (ImpossibleBench, arXiv 2510.20270).

They are made from the suite at hand: of one assertion there is a second with another expected value. The answers are those to
the tasks themselves. An answer that passes has forged its pass, or the scorer is at fault.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.task import Task


def canaries(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """At most `count` of the tasks, with tests that contradict themselves; fewer where fewer have an assertion that can be
    changed. The same tasks and seed give the same canaries."""
    able = [made for task in tasks if (made := _canary(task)) is not None]
    if not able:
        return []
    chosen = random.Random(f"{seed} {able[0].language}").sample(range(len(able)), min(count, len(able)))  # noqa: S311
    return [able[number] for number in sorted(chosen)]


def _canary(task: Task) -> Task | None:
    form = language_named(task.language).toolchain.assertion_form
    flip = form.first(task.tests, task.entry) if form else None
    return None if flip is None else replace(task, tests=flip.contradiction(task.tests))
