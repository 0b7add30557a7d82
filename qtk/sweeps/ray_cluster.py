"""The steps of a sweep as tasks of a Ray cluster: one task for each step, on a node whose directories are this machine's."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

from qtk.checkpoint.manifest import MANIFEST_NAME, canonical_digest
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.errors import MachineError, QtkError
from qtk.install_hints import install_hint
from qtk.progress import note
from qtk.sweeps.step_runner import FinishedJob, StepJob, do_job
from qtk.wording import counted

_STARTING = "`ray start --head` starts one, and `ray start --address HEAD` joins another machine to it."
_RETRIES = 3  # of a task whose worker or node died
_GPU_STAGES = ("finetune", "quantize", "sample", "latency", "divergence", "accuracy")


class RayCluster:
    """A cluster, "auto" for the one that this machine belongs to, or by its address. A step takes the processors of a whole node,
    because it computes with all of them and its timings need it alone, and one GPU where the cluster has any and the step
    computes on it. MachineError when Ray is not installed or the cluster cannot be reached."""

    def __init__(self, address: str) -> None:
        ray = _ray()
        _require_answer(address)
        try:
            # The output of workers is theirs: what ends a step comes back as its error.
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise MachineError(
                f"There is no Ray cluster at {address!r} that can be reached: {str(error).splitlines()[0]} {_STARTING}"
            ) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self.slots = len(nodes)
        self._processors = min(int(node["CPU"]) for node in nodes)
        self._gpus = any(node.get("GPU") for node in nodes)
        self._jobs: dict[Any, StepJob] = {}
        note(
            f"A Ray cluster of {counted(len(nodes), 'node')}: a step takes {counted(self._processors, 'processor')} of one."
        )

    def start(self, job: StepJob) -> None:
        task = (
            _ray()
            .remote(_on_worker)
            .options(
                name=job.name,
                num_cpus=self._processors,
                num_gpus=1 if self._gpus and job.stage in _GPU_STAGES else 0,
                max_retries=_RETRIES,
            )
        )
        self._jobs[task.remote(job, result_versions())] = job

    def wait(self) -> FinishedJob:
        ray = _ray()
        (ended, *_), _ = ray.wait(list(self._jobs), num_returns=1)
        job = self._jobs.pop(ended)
        try:
            seconds, where = ray.get(ended)
        except ray.exceptions.RayError as error:
            return FinishedJob(job, error=_told(error, job))
        directory = _output(job)
        if not (directory / MANIFEST_NAME).is_file():
            lost = MachineError(
                f"{where} wrote {directory}, and it is not here: a sweep on several machines needs a directory that all of them "
                "share at the same path."
            )
            return FinishedJob(job, error=lost)
        return FinishedJob(job, seconds, where=where)

    def close(self) -> None:
        _ray().shutdown()


def _require_answer(address: str) -> None:
    """MachineError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise MachineError(f"There is no Ray cluster at {address!r}: {error}. {_STARTING}") from None


def result_versions() -> str:
    """Equal for versions of qtk that make the same of the same."""
    return canonical_digest(dict(RESULT_VERSIONS))


def _on_worker(job: StepJob, versions: str) -> tuple[float, str]:
    """The job, done by a worker: seconds, and the name of its machine."""
    import platform

    import qtk

    if result_versions() != versions:
        raise MachineError(
            f"{platform.node()} has qtk {qtk.__version__}, whose results are not those of this machine's qtk. Install the same "
            "version on all nodes."
        )
    if not job.run_dir.is_dir():
        raise MachineError(
            f"{platform.node()} does not have {job.run_dir}: a sweep on several machines needs a directory that all of them share at "
            "the same path."
        )
    return do_job(job), platform.node()


def _output(job: StepJob) -> Any:
    from qtk.recipes.reading import RecipeFile, resolve_recipe
    from qtk.recipes.schema import RECIPE_COPY
    from qtk.recipes.steps import recipe_steps

    recipe = resolve_recipe(RecipeFile(job.run_dir / RECIPE_COPY, job.run_dir)).recipe
    return next(job.run_dir / step.directory for step in recipe_steps(recipe, job.run_dir) if step.name == job.step)


def _told(error: Exception, job: StepJob) -> QtkError:
    """What a task's end says to whoever waits for it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, QtkError):
        return type(cause)(str(cause))
    if isinstance(cause, ImportError):
        return MachineError(f"A worker lacks a package: {cause}. Install the same packages on all nodes.")
    first = str(error).strip().splitlines()[-1]
    return MachineError(f"The worker that did {job.name} was lost {_RETRIES + 1} times: {first}")


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MachineError(f"--ray needs the package ray: {install_hint('ray', 'ray')}")
    import ray

    return ray
