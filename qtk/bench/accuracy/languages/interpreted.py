"""The toolchain of languages that are run from their source."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from qtk.bench.accuracy.languages.base import Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job


@dataclass(frozen=True)
class Interpreted(Toolchain):
    """Solution, then tests, in one program that the first of `commands` reads from standard input, so that no file holds it.

    end: what prints the sentinel, which stands there as {0}. flags: what makes the command read its program there. file:
    where the command takes no program from there, the name of a file. silent: whatever is printed to standard error is a
    failure.
    """

    end: str = ""
    flags: tuple[str, ...] = ()
    file: str = ""
    silent: bool = False

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        return self.refuted(self.shared_job(solution, task, environment), solution, task, environment)

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{solution}\n{self.tests(task.tests)}\n{self.end.format(sentinel)}"
        location, limits = _location(self.commands[0]), roomy(self.limits, 1024 * MIB, 64)
        if self.file:
            steps = (self._run(location, *self.flags, self.file),)
            return Job({self.file: source}, steps, sentinel, environment, limits, silent=self.silent)
        steps = (replace(self._run(location, *self.flags), entry=source),)
        return Job({}, steps, sentinel, environment, limits, silent=self.silent)

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
