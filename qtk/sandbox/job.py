"""What goes into the sandbox and what comes out, as plain data that crosses a pipe as JSON. Standard library only."""

from __future__ import annotations

import binascii
import marshal
import types
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["namespaces", "bubblewrap", "user-namespaces", "landlock", "rlimits"]

MIB = 2**20
# In a worker's scratch directory.
JOB_NAME, ANSWER_NAME, OUTCOME_NAME = "job.json", "answer.json", "outcome.json"


@dataclass(frozen=True)
class JobLimits:
    """Limits of one job. `memory_bytes` and `processes` hold for the job as a whole, `file_bytes` for one file.

    `disk_bytes` and `disk_files` bound the private temp directory, `output_bytes` what the program prints.
    """

    memory_bytes: int = 1024 * MIB
    processes: int = 64
    output_bytes: int = 64 * 1024
    file_bytes: int = 64 * MIB
    disk_bytes: int = 256 * MIB
    disk_files: int = 4096
    open_files: int = 256


TESTS_NAME = "tests.py"  # what tests that run apart are called in tracebacks


def compiled_tests(tests: str) -> types.CodeType:
    """Tests as they run. SyntaxError, ValueError or RecursionError for what is no Python."""
    return compile(tests, TESTS_NAME, "exec", dont_inherit=True)


def packed_code(code: types.CodeType) -> str:
    """Code as text, for another process of the same Python."""
    return binascii.b2a_base64(marshal.dumps(code), newline=False).decode("ascii")


def unpacked_code(text: str) -> types.CodeType:
    """What `packed_code` packed."""
    code: types.CodeType = marshal.loads(binascii.a2b_base64(text))  # noqa: S302 - of the process that makes the jobs
    return code


@dataclass(frozen=True)
class Apart:
    """Python tests that run in a process of their own, beside that of the program they test.

    before: code that the tests may use. tests: the tests. compiled: the same as `packed_code`, because whoever
    takes them apart has compiled them. names: those of the program that the tests use, first the function that is tested; the
    others only where `before` has none of that name. own: those that `before` defines and that are there only if the program has
    them as well.
    """

    before: str
    tests: str
    compiled: str
    names: tuple[str, ...]
    own: tuple[str, ...] = ()

    @staticmethod
    def from_json(data: dict[str, Any]) -> Apart:
        return Apart(data["before"], data["tests"], data["compiled"], tuple(data["names"]), tuple(data["own"]))


@dataclass(frozen=True)
class Beside:
    """Tests that are a program of their own and run at the same time as the program they test.

    Both have an end of one connection as descriptor 3. argv: runs the tests; a file of the work directory among it has no name
    any more when the program starts. program: what the tests have on standard input. packed: a folder of the work directory
    that becomes a zip archive without a name, which the tests have as descriptor 4. parts: what they were made of, by name;
    nobody but their maker reads that.
    """

    argv: tuple[str, ...]
    program: str
    packed: str = ""
    parts: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Beside:
        return Beside(tuple(data["argv"]), data["program"], data["packed"])


@dataclass(frozen=True)
class Command:
    """A step of a job: one program that is run in the work directory.

    `argv` empty: the worker's own Python, forked instead of started, runs `script`. With tests `apart`, the script's process
    is told nothing but the script, and none of the job's files is written. With tests `beside` the step lasts until both
    programs have ended; it is the tests that print the sentinel. `files` are written just before the step: the steps before it
    do not see them. `entry`: what the program has on standard input.

    `wall_seconds` bounds the clock, `cpu_seconds` the processor time of each process.
    """

    name: Literal["compile", "run"]
    argv: tuple[str, ...] = ()
    script: str = ""
    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    apart: Apart | None = None
    beside: Beside | None = None
    files: dict[str, str] = field(default_factory=dict)
    entry: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "apart": vars(self.apart) if self.apart else None,
            "beside": vars(self.beside) if self.beside else None,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Command:
        apart = Apart.from_json(data["apart"]) if data["apart"] else None
        beside = Beside.from_json(data["beside"]) if data["beside"] else None
        return Command(**{**data, "argv": tuple(data["argv"]), "apart": apart, "beside": beside})


@dataclass(frozen=True)
class Job:
    """Files written into an empty work directory, then steps in order until one fails.

    `sentinel`: a random word that must be the last thing on standard output of the last step. A forked Python script does
    not need it, because it proves its end in another way. The files are gone before a step "run" that follows another
    step, those of the steps as well. `refutation`: a job that must not pass. It runs where this one has passed, in an emptied
    work directory; if it passes too, the outcome is `forged`. `silent`: a program that prints to standard error has not passed.
    """

    files: dict[str, str]
    steps: tuple[Command, ...]
    sentinel: str
    environment: dict[str, str] = field(default_factory=dict)
    limits: JobLimits = field(default_factory=JobLimits)
    refutation: Job | None = None
    silent: bool = False

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes; without the copies that dataclasses.asdict makes, which cost as much as the JSON itself."""
        refutation = self.refutation.as_json() if self.refutation else None
        steps = [step.as_json() for step in self.steps]
        return {**vars(self), "steps": steps, "limits": vars(self.limits), "refutation": refutation}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Job:
        steps = tuple(Command.from_json(step) for step in data["steps"])
        limits = JobLimits(**data["limits"])
        refutation = Job.from_json(data["refutation"]) if data["refutation"] else None
        return Job(data["files"], steps, data["sentinel"], data["environment"], limits, refutation, data["silent"])

    @property
    def answer(self) -> AnswerProgram | None:
        """What the process of an answer is told whose tests run apart, and all that it is told; None where they do not."""
        step = self.steps[-1]
        if step.apart is None:
            return None
        return AnswerProgram(step.script, self.files[step.script], self.environment, step.cpu_seconds, self.limits)

    @property
    def notice(self) -> JobNotice:
        """What the worker is told about the job."""
        apart = self.steps[-1].apart is not None
        steps = (*self.steps, *(self.refutation.steps if self.refutation else ()))
        return JobNotice(sum(step.wall_seconds for step in steps), apart, self.limits)


@dataclass(frozen=True)
class AnswerProgram:
    """A Python program that its tests call from another process. script: its name."""

    script: str
    source: str
    environment: dict[str, str]
    cpu_seconds: int
    limits: JobLimits

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "limits": vars(self.limits)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> AnswerProgram:
        return AnswerProgram(**{**data, "limits": JobLimits(**data["limits"])})


@dataclass(frozen=True)
class JobNotice:
    """What a worker knows of a job: nothing that a program forked from that worker must not find in its memory.

    seconds: the clocks of all steps together. apart: the last step has its tests apart.
    """

    seconds: float
    apart: bool
    limits: JobLimits

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "limits": vars(self.limits)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> JobNotice:
        return JobNotice(data["seconds"], data["apart"], JobLimits(**data["limits"]))


Ending = Literal["exited", "wall_clock", "cpu_time", "output", "memory", "processes", "sandbox"]


@dataclass(frozen=True)
class ProgramOutcome:
    """How a job ended: the step that was last, its exit code (negative: signal), what it printed, and which limit it hit.

    `reached_end`: the program reached its end. The sentinel was the last thing printed (the sentinel is cut off from
    `stdout`), or the script proved its end, or its tests ended beside it. `forged`: the refutation passed too. `ending`
    "sandbox" means that the sandbox itself failed, as `stderr` says; that is never the program's fault.
    """

    step: str
    exit_code: int
    ending: Ending
    stdout: str
    stderr: str
    reached_end: bool
    seconds: float
    forged: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def broken_sandbox(reason: str) -> ProgramOutcome:
    """The outcome of a job that the sandbox could not run."""
    return ProgramOutcome("sandbox", -1, "sandbox", "", reason, False, 0.0)
