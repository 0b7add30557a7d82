"""The tasks of one language, which programs and likelihoods are measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

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

    @property
    def task_ids(self) -> list[str]:
        return [task.task_id for task in self.tasks]

    def share(self, number: int, count: int) -> Self | None:
        """Every count-th task. References that are those of the tasks are shared with them."""
        tasks = self.tasks[number::count]
        references = tasks if self.references == self.tasks else self.references
        return replace(self, tasks=tasks, references=references) if tasks else None


def load_tasks(part: SuitePart, options: AccuracyOptions) -> LoadedTasks:
    """The tasks of a language, the first ones with --limit. MissingData where the file is not found."""
    tasks, file = suite_tasks(part.suite, part.name, options.data)
    chosen = tasks[: options.limit]
    # Where only a few of a suite's tasks have a solution, those are run whatever the limit.
    references = [task for task in tasks if task.reference] if part.suite.solutions else chosen
    return LoadedTasks(part, [file], file.name, file_digest(file).sha256, chosen, references, whole=len(tasks))
