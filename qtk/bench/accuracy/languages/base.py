"""What a language's toolchain does: source + tests -> a job for the sandbox; the job's outcome -> a verdict."""

from __future__ import annotations

import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.suites.tasks import Task
from qtk.errors import MachineError
from qtk.sandbox.job import MIB, Job, Limits, Outcome, Step


class LanguageUnavailable(MachineError):
    """This machine lacks what a language needs: other languages can still be scored."""


Verdict = Literal["passed", "failed", "compile_error", "timeout", "out_of_memory", "output_limit", "sandbox_error"]
# What the runtimes say when memory is refused, in small letters: Python, Ruby, D and Java; C++; Node, Go, Perl and Racket;
# Lua; R; Rust; PHP; Bash.
_MEMORY_WORDS = re.compile(
    r"memoryerror|std::bad_alloc|out of memory|not enough memory|cannot allocate|memory allocation of \d+ bytes failed"
    r"|allowed memory size of \d+ bytes"
)


@dataclass(frozen=True)
class Requirement:
    """A library that some tasks need: the words that show its absence, its name, and how it is installed on Debian."""

    sign: str
    name: str
    install: str


@dataclass(frozen=True)
class Company:
    """How many programs may share a sandbox at first (1: none does), where starting the runtime costs most."""

    most: int = 1

    def size(self, programs: int, workers: int) -> int:
        """Programs in one sandbox, so that every worker gets the same number of sandboxes."""
        rounds = -(-programs // (workers * self.most))
        return max(1, -(-programs // (workers * max(1, rounds))))


@dataclass(frozen=True)
class Toolchain(ABC):
    """The base of every language. `seconds`: clock of one run."""

    seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)

    language: ClassVar[str] = ""
    commands: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    requirements: ClassVar[tuple[Requirement, ...]] = ()
    company: ClassVar[Company] = Company()

    def prepare(self) -> None:
        """Looks for the commands. LanguageUnavailable names the ones that are absent."""
        absent = [command for command in self.commands if shutil.which(command) is None]
        if absent:
            raise LanguageUnavailable(f"{self.language} needs {' and '.join(absent)} ({self.install}).")

    @property
    def readable(self) -> tuple[str, ...]:
        """Paths beyond the system's own that the programs must be able to read."""
        return ()

    @abstractmethod
    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        """The job that runs the task's tests on a solution (the whole source before the tests)."""

    def sociable(self, job: Job) -> bool:
        """Whether a job's program may share a sandbox with others at first. Only for toolchains with company."""
        raise NotImplementedError

    def together(self, jobs: Sequence[Job]) -> Job:
        """One job that runs the programs of several and prints the sentinel of each that passes, one a line.

        It must hold for a failure of any kind that the others' sentinels are not printed because of it: who is not
        there runs again alone. Only for toolchains with company.
        """
        raise NotImplementedError

    def verdict(self, outcome: Outcome, rules: Rules) -> Verdict:
        """What the outcome means. A program passes only when it ran to the end of its tests."""
        limit = _LIMIT_VERDICTS.get(outcome.ending)
        if limit is not None:
            # A compiler that complains without end complains about the program.
            return "compile_error" if (limit, outcome.step) == ("output_limit", "compile") else limit
        if outcome.exit_code != 0 and _MEMORY_WORDS.search(outcome.stderr.lower()):
            return "out_of_memory"
        if outcome.step == "compile":
            return "compile_error"
        return "passed" if outcome.exit_code == 0 and outcome.reached_end else "failed"

    def missing(self, outcomes: Iterable[Outcome]) -> list[str]:
        """The libraries whose absence shows in failed references, each with the way to install it."""
        text = "\n".join(outcome.stderr + outcome.stdout for outcome in outcomes)
        return [f"{need.name} ({need.install})" for need in self.requirements if need.sign in text]

    def _run(self, *argv: str, script: str = "") -> Step:
        return Step("run", argv, script, wall_seconds=self.seconds, cpu_seconds=_whole(self.seconds))

    @staticmethod
    def _compile(*argv: str, seconds: float = 60.0) -> Step:
        return Step("compile", argv, wall_seconds=seconds, cpu_seconds=_whole(seconds))


_LIMIT_VERDICTS: dict[str, Verdict] = {
    "wall_clock": "timeout",
    "cpu_time": "timeout",
    "output": "output_limit",
    "memory": "out_of_memory",
    "processes": "failed",
    "sandbox": "sandbox_error",
}


def _whole(seconds: float) -> int:
    return max(1, int(seconds + 0.999))


def new_sentinel() -> str:
    """A word that no program can know beforehand."""
    return f"tests-ended-{secrets.token_hex(12)}"


def roomy(limits: Limits, memory_bytes: int, processes: int) -> Limits:
    """Limits for a runtime that needs threads and memory for itself."""
    memory = max(limits.memory_bytes, memory_bytes)
    return replace(limits, memory_bytes=memory, processes=max(limits.processes, processes), disk_bytes=512 * MIB)
