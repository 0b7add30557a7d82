"""What a language's toolchain does: source + tests -> a job for the sandbox; the job's outcome -> a verdict."""

from __future__ import annotations

import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from qtk.bench.accuracy.languages.assertions import Assertions
from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.task import Task
from qtk.errors import MachineError
from qtk.sandbox.job import MIB, Command, Job, JobLimits, ProgramOutcome


class LanguageUnavailable(MachineError):
    """This machine lacks what a language needs: other languages can still be scored."""


Verdict = Literal[
    "passed", "failed", "tampered", "compile_error", "timeout", "out_of_memory", "output_limit", "sandbox_error"
]
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
    """How the programs of a language are compiled, run and judged.

    commands: what must be on PATH. install: how the commands are installed, in words. requirements: libraries that some
    tasks need. company: whether programs may share a sandbox at first. seconds: the clock of one run. limits: of one
    job. assertion_form: how tests assert, where a wrong assertion can be made of one. reaching: where answer and tests share a
    process, all words with which an answer can reach beyond its own function. A program without any of them cannot have
    changed what its tests mean, and is not run a second time. Only for languages in which such a list can be complete: nothing
    is found by a text at run time, and no name is bound anew without a word. None: every program that passes is. vocabulary: what
    shows that an answer defines words of its tests; that alone is only noted. `settings` names the
    further fields that a suite's YAML may set.
    """

    commands: tuple[str, ...] = ()
    install: str = ""
    requirements: tuple[Requirement, ...] = ()
    company: Company = field(default_factory=Company)
    seconds: float = 10.0
    limits: JobLimits = field(default_factory=JobLimits)
    assertion_form: Assertions | None = None
    reaching: re.Pattern[str] | None = None
    vocabulary: re.Pattern[str] | None = None

    settings: ClassVar[frozenset[str]] = frozenset()

    def absent_commands(self) -> list[str]:
        """The commands that are not on PATH."""
        return [command for command in self.commands if shutil.which(command) is None]

    def prepare(self) -> None:  # noqa: B027 - most commands need nothing
        """Looks for what the commands themselves need. LanguageUnavailable names what is absent."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Paths beyond the system's own that the programs must be able to read."""
        return ()

    def preload(self, header: str) -> tuple[str, ...]:
        """Python modules that a sandbox worker loads once, given the suite's lines before every program."""
        return ()

    @abstractmethod
    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        """The job that runs the task's tests on a solution (the whole source before the tests)."""

    def refuted(self, job: Job, solution: str, task: Task, environment: dict[str, str]) -> Job:
        """A job in which answer and tests share a process, with its refutation: the same with a wrong assertion, made by
        `shared_job`."""
        flip = self.assertion_form.first(task.tests, task.entry) if self.assertion_form else None
        if flip is None or (self.reaching is not None and not self.reaching.search(solution)):
            return job
        wrong = replace(task, tests=flip.instead(task.tests))
        return replace(job, refutation=self.shared_job(solution, wrong, environment))

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        """The job in which answer and tests share a process, for languages that have no other."""
        raise NotImplementedError

    def sociable(self, job: Job) -> bool:
        """Whether a job's program may share a sandbox with others at first. Only for toolchains with company."""
        raise NotImplementedError

    def together(self, jobs: Sequence[Job]) -> Job:
        """One job that runs the programs of several, and prints the sentinel of each that passes on a line of its own.

        Whatever makes one program fail must never print the sentinel of another. A program whose sentinel is missing
        runs again alone. Only for toolchains with company.
        """
        raise NotImplementedError

    def verdict(self, outcome: ProgramOutcome, rules: Rules) -> Verdict:
        """What the outcome means. A program passes only when it ran to the end of its tests, and these meant what they say."""
        if outcome.forged:
            return "tampered"
        limit = _LIMIT_VERDICTS.get(outcome.ending)
        if limit is not None:
            # A compiler that complains without end complains about the program.
            return "compile_error" if (limit, outcome.step) == ("output_limit", "compile") else limit
        if outcome.exit_code != 0 and _MEMORY_WORDS.search(outcome.stderr.lower()):
            return "out_of_memory"
        if outcome.step == "compile":
            return "compile_error"
        return "passed" if outcome.exit_code == 0 and outcome.reached_end else "failed"

    def missing(self, outcomes: Iterable[ProgramOutcome]) -> list[str]:
        """The libraries whose absence shows in failed references, each with the way to install it."""
        text = "\n".join(outcome.stderr + outcome.stdout for outcome in outcomes)
        return [f"{need.name} ({need.install})" for need in self.requirements if need.sign in text]

    def _run(self, *argv: str, script: str = "") -> Command:
        return Command("run", argv, script, wall_seconds=self.seconds, cpu_seconds=_whole(self.seconds))

    @staticmethod
    def _compile(*argv: str, seconds: float = 60.0) -> Command:
        return Command("compile", argv, wall_seconds=seconds, cpu_seconds=_whole(seconds))


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


def roomy(limits: JobLimits, memory_bytes: int, processes: int) -> JobLimits:
    """Limits for a runtime that needs threads and memory for itself."""
    memory = max(limits.memory_bytes, memory_bytes)
    return replace(limits, memory_bytes=memory, processes=max(limits.processes, processes), disk_bytes=512 * MIB)
