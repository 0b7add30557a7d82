"""Tasks on a Ray cluster: each takes the processors of a whole node, and is done again where a worker or a node dies."""

from __future__ import annotations

import importlib.util
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import qtk
from qtk.checkpoint.manifest import canonical_digest
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.errors import MachineError, QtkError
from qtk.install_hints import install_hint
from qtk.progress import note
from qtk.wording import counted

_STARTING = "`ray start --head` starts one, and `ray start --address HEAD` joins another machine to it."
_RETRIES = 3  # of a task whose worker or node died
_SAME_PACKAGES = "Install the same packages on all nodes."
R = TypeVar("R")


@dataclass(frozen=True)
class ClusterTask(Generic[R]):
    """Something to do on a node. name: for who reads along. work: a function that can be pickled, with its arguments. on_gpu:
    whether it computes on a GPU where there is one."""

    name: str
    work: Callable[[], R]
    on_gpu: bool = False


@dataclass(frozen=True)
class EndedTask(Generic[R]):
    """value: what the work returned, or error: why it failed. where: the machine that did it."""

    task: ClusterTask[R]
    value: R | None = None
    error: QtkError | None = None
    where: str = ""


class RayTasks(Generic[R]):
    """A cluster, "auto" for the one that this machine belongs to, or by its address. A task takes the processors of a whole node,
    because it computes with all of them and its timings need it alone, and one GPU where the cluster has any and it
    computes on it. MachineError when Ray is not installed or the cluster cannot be reached."""

    def __init__(self, address: str, called: str) -> None:
        """called: what a task is, for a sentence."""
        ray = _ray()
        _require_answer(address)
        try:
            # The output of workers is theirs: what ends a task comes back as its error.
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise MachineError(
                f"There is no Ray cluster at {address!r} that can be reached: {str(error).splitlines()[0]} {_STARTING}"
            ) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self.slots = len(nodes)
        self._processors = min(int(node["CPU"]) for node in nodes)
        self._gpus = any(node.get("GPU") for node in nodes)
        self._tasks: dict[Any, ClusterTask[R]] = {}
        size, processors = counted(len(nodes), "node"), counted(self._processors, "processor")
        note(f"A Ray cluster of {size}: a {called} takes {processors} of one.")

    def start(self, task: ClusterTask[R]) -> None:
        on_node = (
            _ray()
            .remote(_on_worker)
            .options(
                name=task.name,
                num_cpus=self._processors,
                num_gpus=1 if self._gpus and task.on_gpu else 0,
                max_retries=_RETRIES,
            )
        )
        self._tasks[on_node.remote(task.work, result_versions())] = task

    def wait(self) -> EndedTask[R]:
        """One that has ended, when one has."""
        ray = _ray()
        (ended, *_), _ = ray.wait(list(self._tasks), num_returns=1)
        task = self._tasks.pop(ended)
        try:
            value, where = ray.get(ended)
        except ray.exceptions.RayError as error:
            return EndedTask(task, error=told(error, task.name))
        return EndedTask(task, value, where=where)

    def close(self) -> None:
        """Leaves the cluster, which ends what is still being done there."""
        _ray().shutdown()


def result_versions() -> str:
    """Equal for versions of qtk that make the same of the same."""
    return canonical_digest(dict(RESULT_VERSIONS))


def told(error: Exception, name: str) -> QtkError:
    """What an error of Ray's says about the task `name` to whoever waits for it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, QtkError):
        return type(cause)(str(cause))
    if isinstance(cause, ImportError):
        return MachineError(f"A worker lacks a package: {cause}. {_SAME_PACKAGES}")
    lines = str(error).strip().splitlines()
    if "failed to import" in str(error):  # Ray's own words where a worker cannot load what it is to do
        return MachineError(f"A worker cannot load qtk: {lines[-1]} {_SAME_PACKAGES}")
    return MachineError(f"The worker that did {name} was lost {_RETRIES + 1} times: {lines[-1]}")


def _on_worker(work: Callable[[], R], versions: str) -> tuple[R, str]:
    """The work, done by a worker: what it returns, and the name of its machine."""
    if result_versions() != versions:
        raise MachineError(
            f"{platform.node()} has qtk {qtk.__version__}, whose results are not those of this machine's qtk. Install the same "
            "version on all nodes."
        )
    return work(), platform.node()


def _require_answer(address: str) -> None:
    """MachineError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise MachineError(f"There is no Ray cluster at {address!r}: {error}. {_STARTING}") from None


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MachineError(f"--ray needs the package ray: {install_hint('ray', 'ray')}")
    import ray

    return ray
