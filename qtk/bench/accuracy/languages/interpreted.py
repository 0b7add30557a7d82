"""The toolchain of languages that are run from their source."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qtk.bench.accuracy.languages.base import Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job


@dataclass(frozen=True)
class Interpreted(Toolchain):
    """Solution, then tests, in one file, given to the first of `commands`.

    file: the name of that file. end: what prints the sentinel, which stands there as {0}. flags: before the file's name.
    """

    file: str = ""
    end: str = ""
    flags: tuple[str, ...] = ()

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{solution}\n{self.tests(task.tests)}\n{self.end.format(sentinel)}"
        command = self._run(_location(self.commands[0]), *self.flags, self.file)
        return Job({self.file: source}, (command,), sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

    def tests(self, tests: str) -> str:
        """The tests without what would end the process before the sentinel."""
        return tests

    @property
    def readable(self) -> tuple[str, ...]:
        """The interpreter's own tree where it is not one of the system's."""
        return tuple(str(Path(_location(command)).parents[1]) for command in self.commands)


def _location(command: str) -> str:
    """Where the command really lies: a link to it may stand in a folder that programs do not see."""
    found = shutil.which(command)
    return str(Path(found).resolve()) if found else command
