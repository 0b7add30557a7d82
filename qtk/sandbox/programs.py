"""What a process of a job does between its fork and the program that it is to run: streams, limits, no rights, then the program.

Nothing here returns. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import sys
import types
from dataclasses import dataclass
from typing import NoReturn, Protocol

from qtk.sandbox import kernel
from qtk.sandbox.answer_process import AnswerProcess, exit_code_of, loaded_program, quotable
from qtk.sandbox.job import AnswerProgram, Beside, Command, Job, JobLimits
from qtk.sandbox.plain_values import Line


class Confine(Protocol):
    """Takes the rights of the calling process away for good. signals: but for sending signals to other processes."""

    def __call__(self, *, signals: bool = False) -> None: ...


@dataclass(frozen=True)
class Streams:
    """The two pipes that a step's processes print into."""

    out_read: int
    out_write: int
    err_read: int
    err_write: int

    @staticmethod
    def make() -> Streams:
        return Streams(*os.pipe(), *os.pipe())

    def close_writing(self) -> None:
        os.close(self.out_write)
        os.close(self.err_write)


def become_program(
    job: Job, step: Command, streams: Streams, end: int | None, confine: Confine, others: int
) -> NoReturn:
    """The program of a step. end: what it has as descriptor 3."""
    code = 96
    try:
        entry = _pipe_with(step.entry) if step.entry else None
        _stand_alone(streams, {} if end is None else {3: end}, entry)
        _limit(job.limits, step.cpu_seconds, others)
        confine()
        if step.argv:
            if end is not None:
                os.set_inheritable(3, True)
            os.execvpe(step.argv[0], step.argv, job.environment)  # noqa: S606 - no shell wanted
        _ready_interpreter(job.environment)
        code = _run_python(step.script, 3)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def become_tests(
    job: Job,
    step: Command,
    beside: Beside,
    streams: Streams,
    end: int,
    held: int | None,
    confine: Confine,
    others: int,
) -> NoReturn:
    """The program of tests that run beside another program. held: the program's file, or its archive, where it has no name any more."""
    try:
        files = {} if held is None else {4: held}
        _stand_alone(streams, {3: end, **files}, _pipe_with(beside.program))
        _limit(job.limits, step.cpu_seconds, others)
        confine()
        os.set_inheritable(3, True)
        if beside.packed:
            os.set_inheritable(4, True)
        elif held is not None:
            os.execve(4, beside.argv, job.environment)  # noqa: S606 - no shell wanted
        os.execvpe(beside.argv[0], beside.argv, job.environment)  # noqa: S606 - no shell wanted
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(96)


def _pipe_with(text: str) -> int:
    """A descriptor from which the text can be read once; of no name, so that nobody else can open it."""
    data = text.encode("utf-8", "surrogatepass")
    read, write = os.pipe()
    if len(data) > fcntl.fcntl(write, fcntl.F_GETPIPE_SZ):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, len(data))  # up to 1 MiB without privileges; OSError beyond
    while data:
        data = data[os.write(write, data) :]
    os.close(write)
    return read


def become_answer(file: int, end: int, streams: Streams, confine: Confine, others: int) -> NoReturn:
    """The program of an answer whose tests run apart. file: says what it is, and is closed before it runs."""
    code = 96
    try:
        with open(file, "rb", buffering=0) as stream:
            program = AnswerProgram.from_json(json.loads(stream.read()))
        _stand_alone(streams, {3: end})
        _limit(program.limits, program.cpu_seconds, others)
        confine()
        _ready_interpreter(program.environment)
        quotable(program.source, program.script)
        loaded = loaded_program(program.source, program.script)
        if isinstance(loaded, types.ModuleType):
            code = 0
            AnswerProcess(Line(3), loaded).serve()
        else:
            code = loaded
    except EOFError:
        code = 0  # the tests have ended
    except BaseException as error:
        code = code or exit_code_of(error)
        if code == 96:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _stand_alone(streams: Streams, descriptors: dict[int, int], entry: int | None = None) -> None:
    """A session of its own, the pipes, and these descriptors (number -> where it is now). Standard input: `entry`, or empty."""
    os.setsid()
    kernel.rank_for_memory_killer(500)
    moved = {number: os.dup(source) for number, source in descriptors.items()}
    while any(source in (0, 1, 2, *moved) for source in moved.values()):
        moved = {number: os.dup(source) for number, source in moved.items()}
    nothing = os.open("/dev/null", os.O_RDONLY) if entry is None else entry
    for source, target in ((nothing, 0), (streams.out_write, 1), (streams.err_write, 2)):
        os.dup2(source, target)
    for number, source in moved.items():
        os.dup2(source, number, inheritable=False)
    os.closerange(3 + len(moved), 1024)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _ready_interpreter(environment: dict[str, str]) -> None:
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)


def _limit(limits: JobLimits, cpu_seconds: int, others: int) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes + others),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # One second between SIGXCPU and SIGKILL tells a used-up processor from any other kill.
        resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU and hard < 0 else value))


def _run_python(script: str, end: int) -> int:
    """Runs a script as a module in this forked interpreter, then says that its end was reached. Returns the exit code."""
    with open(script, encoding="utf-8", errors="surrogatepass", newline="") as stream:
        source = stream.read()
    loaded = loaded_program(source, script)
    if not isinstance(loaded, types.ModuleType):
        return loaded
    _say_end(end)
    return 0


def _say_end(end: int) -> None:
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os.write(end, b"?")
    os.write(end, os.read(end, 64))
