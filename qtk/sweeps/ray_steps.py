"""The steps of a sweep as tasks of a Ray cluster: one task for each step, on a node whose directories are this machine's."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.cluster.ray_tasks import ClusterTask, RayTasks
from qtk.errors import MachineError
from qtk.recipes.reading import RecipeFile, resolve_recipe
from qtk.recipes.schema import RECIPE_COPY
from qtk.recipes.steps import recipe_steps
from qtk.sweeps.step_runner import FinishedJob, StepJob, do_job

_GPU_STAGES = ("finetune", "quantize", "sample", "latency", "divergence", "accuracy")
_SHARED = "a sweep on several machines needs a directory that all of them share at the same path."


class RaySteps:
    """A cluster that does steps, as a `StepRunner`. Errors as of `RayTasks`."""

    def __init__(self, address: str) -> None:
        self._tasks = RayTasks[float](address, "step")
        self._jobs: dict[str, StepJob] = {}
        self.slots = self._tasks.slots

    def start(self, job: StepJob) -> None:
        self._jobs[job.name] = job
        self._tasks.start(ClusterTask(job.name, functools.partial(_on_node, job), on_gpu=job.stage in _GPU_STAGES))

    def wait(self) -> FinishedJob:
        ended = self._tasks.wait()
        job = self._jobs.pop(ended.task.name)
        if ended.error is not None:
            return FinishedJob(job, error=ended.error)
        directory = _output(job)
        if not (directory / MANIFEST_NAME).is_file():
            lost = MachineError(f"{ended.where} wrote {directory}, and it is not here: {_SHARED}")
            return FinishedJob(job, error=lost)
        assert ended.value is not None
        return FinishedJob(job, ended.value, where=ended.where)

    def close(self) -> None:
        self._tasks.close()


def _on_node(job: StepJob) -> float:
    """The job, done where a worker is: seconds."""
    if not job.run_dir.is_dir():
        raise MachineError(f"{platform.node()} does not have {job.run_dir}: {_SHARED}")
    return do_job(job)


def _output(job: StepJob) -> Path:
    recipe = resolve_recipe(RecipeFile(job.run_dir / RECIPE_COPY, job.run_dir)).recipe
    return next(job.run_dir / step.directory for step in recipe_steps(recipe, job.run_dir) if step.name == job.step)
