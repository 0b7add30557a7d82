"""Control groups, where they can be made (root, version 1 hierarchies): the kernel's own cap on a job's memory and processes.

A second wall behind the supervisor's own watch: it also counts what no process maps, such as anonymous files.
Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import time

from qtk.sandbox.job import Limits

_MOUNT = "/sys/fs/cgroup"
_HEADROOM_BYTES = 64 * 2**20  # the supervisor's own pages and the job's temp files' bookkeeping


class ControlGroup:
    """A group in the pids and in the memory hierarchy. `directories` is empty where none could be made."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.directories: list[str] = []
        memory = limits.memory_bytes + limits.disk_bytes + _HEADROOM_BYTES
        for kind, settings in (
            ("pids", {"pids.max": limits.processes + 8}),
            ("memory", {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}),
        ):
            directory = f"{_MOUNT}/{kind}/{name}"
            if not os.access(f"{_MOUNT}/{kind}", os.W_OK) or not os.path.exists(f"{_MOUNT}/{kind}/tasks"):
                continue
            try:
                os.makedirs(directory, exist_ok=True)
                for file, value in settings.items():
                    if os.path.exists(f"{directory}/{file}"):
                        self._write(directory, file, value)
                self.directories.append(directory)
            except OSError:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)

    @staticmethod
    def _write(directory: str, file: str, value: int) -> None:
        with open(f"{directory}/{file}", "w", encoding="ascii") as stream:
            stream.write(str(value))

    def enter(self) -> None:
        """Puts the calling process, and so all its future children, into the group."""
        for directory in self.directories:
            self._write(directory, "cgroup.procs", os.getpid())

    def killed_for_memory(self) -> int:
        """How often the kernel has killed a process of the group because its memory was used up."""
        for directory in self.directories:
            with contextlib.suppress(OSError), open(f"{directory}/memory.oom_control", encoding="ascii") as stream:
                for line in stream:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def remove(self) -> None:
        for directory in self.directories:
            for _ in range(100):
                try:
                    os.rmdir(directory)
                    break
                except OSError:
                    time.sleep(0.01)  # the last process is still being buried
