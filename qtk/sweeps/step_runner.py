"""Where the steps of a sweep are done: one after another in this process, or as the tasks of a cluster (`ray_steps`)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qtk.checkpoint.staging import partial_path
from qtk.errors import QtkError
from qtk.recipes.reading import RecipeFile, resolve_recipe
from qtk.recipes.schema import RECIPE_COPY
from qtk.recipes.state import RunState
from qtk.recipes.step_work import RecipeSources, StepWork
from qtk.recipes.steps import recipe_steps


@dataclass(frozen=True)
class StepJob:
    """A step of a run that has been begun in its directory. stage: what it is, for its resources and for who reads along."""

    run_dir: Path
    step: str
    stage: str

    @property
    def name(self) -> str:
        return f"{self.run_dir.name}: {self.step}"


@dataclass(frozen=True)
class FinishedJob:
    """What came of a job: the seconds it took, or why it failed. where: the machine that did it, empty for this one."""

    job: StepJob
    seconds: float = 0.0
    error: QtkError | None = None
    where: str = ""


class StepRunner(Protocol):
    """slots: how many jobs may be started before one is waited for. `start` takes a job, `wait` gives one that has ended."""

    slots: int

    def start(self, job: StepJob) -> None: ...

    def wait(self) -> FinishedJob: ...

    def close(self) -> None: ...


class OneByOne:
    """This process, a job at a time."""

    slots = 1

    def __init__(self) -> None:
        self._jobs: list[StepJob] = []

    def start(self, job: StepJob) -> None:
        self._jobs.append(job)

    def wait(self) -> FinishedJob:
        job = self._jobs.pop(0)
        try:
            return FinishedJob(job, do_job(job))
        except QtkError as error:
            return FinishedJob(job, error=error)

    def close(self) -> None:
        pass


def do_job(job: StepJob) -> float:
    """Makes the step's output from the recipe and the records in the run's directory; what lies there unfinished was begun on
    the same terms, and is continued. Seconds. Writes nothing but the output: the records are its caller's."""
    file = RecipeFile(job.run_dir / RECIPE_COPY, job.run_dir)
    recipe = resolve_recipe(file).recipe
    state = RunState.load(job.run_dir) or RunState(recipe=recipe.name)
    step = next(step for step in recipe_steps(recipe, job.run_dir) if step.name == job.step)
    work = StepWork(job.run_dir, state, RecipeSources(recipe, job.run_dir, state))
    start = time.monotonic()
    work.make(step, resume=partial_path(job.run_dir / step.directory).is_dir())
    return time.monotonic() - start
