"""Control groups: the kernel's own cap on the memory and the processes of a job, where such a group can be made.

A second wall behind the supervisor's own watch. A control group also counts what no process maps, such as anonymous files.
Version 1 needs root. Version 2 needs a group that this user may divide: root has one, and systemd gives one to the user's
own services (`systemd-run --user --scope qtk ...`). Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from qtk.sandbox.job import JobLimits

MOUNT = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"
_HEADROOM_BYTES = 64 * 2**20  # the supervisor's own pages and the job's temp files' bookkeeping
_HEADROOM_PROCESSES = 12  # the worker, supervisors that are leaving


@dataclass(frozen=True)
class ControlGroup:
    """A group for the jobs of one worker.

    version: 1 or 2; 0 where no group could be made, and then every call does nothing. directories: one a hierarchy in
    version 1, a single one in version 2.
    """

    version: int = 0
    directories: tuple[str, ...] = ()

    @property
    def lasting(self) -> bool:
        """Whether the worker itself may stay in the group, which saves each job the milliseconds that entering takes. In
        version 2 `kill` would end the worker as well."""
        return self.version == 1

    def enter(self) -> None:
        """Puts the calling process, and so all its future children, into the group."""
        for directory in self.directories:
            _write(directory, "cgroup.procs", os.getpid())

    def leave(self) -> None:
        """Puts the calling process into the group above, so that this one can be removed."""
        for directory in self.directories:
            with contextlib.suppress(OSError):
                _write(os.path.dirname(directory), "cgroup.procs", os.getpid())

    def killed_for_memory(self) -> int:
        """How often the kernel has killed a process of the group because its memory was used up."""
        file = {1: "memory.oom_control", 2: "memory.events"}.get(self.version)
        for directory in self.directories:
            with contextlib.suppress(OSError), open(f"{directory}/{file}", "rb", buffering=0) as stream:
                for line in stream.read().splitlines():
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """Kills every process of the group, in one sweep that no fork escapes. Version 1 has no such call."""
        if self.version == 2:
            for directory in self.directories:
                with contextlib.suppress(OSError):  # before Linux 5.14
                    _write(directory, "cgroup.kill", 1)

    def remove(self) -> None:
        """Removes the group once its processes are gone."""
        for directory in self.directories:
            for _ in range(100):
                if not os.path.exists(directory):
                    break
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
                    break
                time.sleep(0.01)  # the kernel is still dismantling the last process


def make_control_group(name: str, limits: JobLimits, mount: str = MOUNT, membership: str = MEMBERSHIP) -> ControlGroup:
    """A group of this name with a job's limits, or one without directories where none can be made.

    mount: where the hierarchies are mounted. membership: the file that says in which groups this process is.
    """
    if os.path.exists(f"{mount}/cgroup.controllers"):
        return _version_2(name, limits, mount, membership)
    return _version_1(name, limits, mount)


def _version_1(name: str, limits: JobLimits, mount: str) -> ControlGroup:
    memory = _memory_bytes(limits)
    wanted = {
        "pids": {"pids.max": limits.processes + _HEADROOM_PROCESSES},
        "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
    }
    made = []
    for hierarchy, settings in wanted.items():
        directory = f"{mount}/{hierarchy}/{name}"
        if not os.access(f"{mount}/{hierarchy}", os.W_OK) or not os.path.exists(f"{mount}/{hierarchy}/tasks"):
            continue
        try:
            os.makedirs(directory, exist_ok=True)
            for file, value in settings.items():
                if os.path.exists(f"{directory}/{file}"):
                    _write(directory, file, value)
            made.append(directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    return ControlGroup(1, tuple(made)) if made else ControlGroup()


def _version_2(name: str, limits: JobLimits, mount: str, membership: str) -> ControlGroup:
    """A group below that of this process; or beside it, because a group with processes cannot bound groups below it."""
    own = _own_group(mount, membership)
    for parent in (own, os.path.dirname(own)):
        if not (parent == mount or parent.startswith(f"{mount}/")) or not _bounds_children(
            parent, enable=parent == own
        ):
            continue
        group = ControlGroup(2, (f"{parent}/{name}",))
        try:
            os.makedirs(f"{parent}/{name}", exist_ok=True)
            _write(f"{parent}/{name}", "pids.max", limits.processes + _HEADROOM_PROCESSES)
            _write(f"{parent}/{name}", "memory.max", _memory_bytes(limits))
            with contextlib.suppress(OSError):  # a kernel that does not count swap
                _write(f"{parent}/{name}", "memory.swap.max", 0)
        except OSError:
            group.remove()
            continue
        if _can_be_entered(group):
            return group
        group.remove()
    return ControlGroup()


def _can_be_entered(group: ControlGroup) -> bool:
    """Whether a child of this process can move there. Beside a group made, that takes rights to the group above both."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(OSError):
            group.enter()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _own_group(mount: str, membership: str) -> str:
    """The directory of the group that this process is in; empty where that cannot be told."""
    with contextlib.suppress(OSError), open(membership, encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("0::/"):
                return os.path.normpath(f"{mount}/{line.strip().removeprefix('0::/')}")
    return ""


def _bounds_children(directory: str, *, enable: bool) -> bool:
    """Whether groups below this one get limits on memory and processes. enable: switches that on where it is possible."""
    file = f"{directory}/cgroup.subtree_control"
    with contextlib.suppress(OSError):
        if enable and not {"memory", "pids"} <= _words(file):
            with contextlib.suppress(OSError):
                _write(directory, "cgroup.subtree_control", "+memory +pids")
        return {"memory", "pids"} <= _words(file)
    return False


def _words(file: str) -> set[str]:
    with open(file, encoding="ascii") as stream:
        return set(stream.read().split())


def _memory_bytes(limits: JobLimits) -> int:
    return limits.memory_bytes + limits.disk_bytes + _HEADROOM_BYTES


def _write(directory: str, file: str, value: int | str) -> None:
    with open(f"{directory}/{file}", "w", encoding="ascii") as stream:
        stream.write(str(value))
