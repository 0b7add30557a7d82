"""The tasks of one language, which programs and likelihoods are measured on."""

from __future__ import annotations

from dataclasses import dataclass

from qtk.bench.accuracy.measures.measure import Loaded
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.suites.suites import SuitePart, suite_tasks
from qtk.bench.accuracy.task import Task
from qtk.checkpoint.manifest import file_digest


@dataclass(frozen=True)
class LoadedTasks(Loaded):
    """tasks: those to score. references: those whose known solutions must pass before."""

    tasks: list[Task]
    references: list[Task]


def load_tasks(part: SuitePart, options: AccuracyOptions) -> LoadedTasks:
    """The tasks of a language, the first ones with --limit. MissingData where the file is not found."""
    tasks, file = suite_tasks(part.suite, part.name, options.data)
    chosen = tasks[: options.limit]
    # Where only a few of a suite's tasks have a solution, those are run whatever the limit.
    references = [task for task in tasks if task.reference] if part.suite.solutions else chosen
    return LoadedTasks(part, [file], file.name, file_digest(file).sha256, chosen, references, whole=len(tasks))
