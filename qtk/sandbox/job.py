"""What goes into the sandbox and what comes out, as plain data that crosses a pipe as JSON. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["namespaces", "bubblewrap", "user-namespaces", "landlock", "rlimits"]

MIB = 2**20


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


@dataclass(frozen=True)
class Command:
    """A step of a job: one program that is run in the work directory.

    `argv` empty: the worker's own Python, forked instead of started, runs `script`.

    `wall_seconds` bounds the clock, `cpu_seconds` the processor time of each process.
    """

    name: Literal["compile", "run"]
    argv: tuple[str, ...] = ()
    script: str = ""
    wall_seconds: float = 10.0
    cpu_seconds: int = 10


@dataclass(frozen=True)
class Job:
    """Files written into an empty work directory, then steps in order until one fails.

    `sentinel`: a random word that must be the last thing on standard output of the last step. A forked Python script
    needs no sentinel, because it proves its end in another way. The files are gone before a step "run" that follows
    another step.
    """

    files: dict[str, str]
    steps: tuple[Command, ...]
    sentinel: str
    environment: dict[str, str] = field(default_factory=dict)
    limits: JobLimits = field(default_factory=JobLimits)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Job:
        steps = tuple(Command(**{**step, "argv": tuple(step["argv"])}) for step in data["steps"])
        return Job(data["files"], steps, data["sentinel"], data["environment"], JobLimits(**data["limits"]))


Ending = Literal["exited", "wall_clock", "cpu_time", "output", "memory", "processes", "sandbox"]


@dataclass(frozen=True)
class ProgramOutcome:
    """How a job ended: the step that was last, its exit code (negative: signal), what it printed, and which limit it hit.

    `reached_end`: the program reached its end. The sentinel was the last thing printed (the sentinel is cut off from
    `stdout`), or the script proved its end. `ending` "sandbox" means that the sandbox itself failed, as `stderr` says;
    that is never the program's fault.
    """

    step: str
    exit_code: int
    ending: Ending
    stdout: str
    stderr: str
    reached_end: bool
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def broken_sandbox(reason: str) -> ProgramOutcome:
    """The outcome of a job that the sandbox could not run."""
    return ProgramOutcome("sandbox", -1, "sandbox", "", reason, False, 0.0)
