"""Runs a job's steps, one child process after the other, within limits, and kills whatever a step leaves behind.

This process is trusted and stands between the worker and the program. Where the job has a process space of its own, this is
process 1 there; elsewhere this process adopts every orphan. Standard library only.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qtk.sandbox import kernel
from qtk.sandbox.apart_tests import ANSWER_GONE_EXIT, TestsOutcome, run_tests
from qtk.sandbox.job import Apart, Beside, Command, Ending, Job, JobLimits, ProgramOutcome
from qtk.sandbox.plain_values import Line
from qtk.sandbox.programs import Confine, Streams, become_answer, become_program, become_tests

_TICK_SECONDS = 0.025
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ANSWER_SECONDS = 1.0  # in which an answer's process has to end that has closed its connection


class Tree:
    """The processes below this supervisor: in a process space of its own (`alone`), every process that can be seen."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone

    def pids(self) -> list[int]:
        if self.alone:
            own = os.getpid()
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]
        found, frontier = [], [os.getpid()]
        while frontier:
            children = _children(frontier.pop())
            found += children
            frontier += children
        return found

    def usage(self) -> tuple[int, int]:
        """Processes, and the sum of their resident memory in bytes."""
        pids, resident = self.pids(), 0
        for pid in pids:
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
                resident += int(statm.read().split()[1]) * _PAGE
        return len(pids), resident

    def kill(self) -> None:
        """Kills every process of the tree and waits until they are gone. OSError when a process does not die."""
        deadline = time.monotonic() + 10
        while True:
            if self.alone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # one sweep under the kernel's lock: nothing can fork its way past it
            else:
                pids = self.pids()
                for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that the list stays true
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError, PermissionError):
                            os.kill(pid, number)
            if not _reap():
                return
            if time.monotonic() > deadline:
                raise OSError(16, "processes of the job would not die")
            time.sleep(0.001)


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found = []
    for task in tasks:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as stream:
            found += [int(word) for word in stream.read().split()]
    return found


def _reap() -> bool:
    """Collects the dead; whether children are left."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
        except ChildProcessError:
            return False


class EndOfScript:
    """How a forked Python program proves that it reached its end: it asks for a word, and gives the word back.

    The program shares its process with our own code, so it could find whatever lies there. Therefore the word is made
    on this side, and only when the program has ended. A program that knows this file can still pretend to have ended:
    inside one process that cannot be prevented.
    """

    def __init__(self) -> None:
        self.ours, self.theirs = kernel.connected_pair(messages=True)
        os.set_blocking(self.ours, False)
        self._word = b""
        self.reached = False

    def serve(self) -> bool:
        """Answers one message of the program. False when there is no message."""
        try:
            message = os.read(self.ours, 64)
        except OSError:
            return False
        if message == b"?":
            self._word = self._word or os.urandom(16)
            with contextlib.suppress(OSError):
                os.write(self.ours, self._word)
        elif message:
            self.reached = self.reached or message == self._word
        return message != b""

    def close(self) -> None:
        os.close(self.ours)


def _tasks_of_user() -> int:
    """How many processes and threads this user has. Outside a user id of the job's own, the kernel's limit counts them all."""
    user, found = os.getuid(), 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                found += len(os.listdir(f"/proc/{name}/task"))
    return found


@dataclass(frozen=True)
class BegunAnswer:
    """The process of an answer whose tests run apart. It was forked before anything of the job was read."""

    pid: int
    handle: int
    line: int
    streams: Streams
    start: float


def begun_answer(file: int, tree: Tree, confine: Confine) -> BegunAnswer:
    """Forks the process of an answer whose tests run apart: of the job it will ever know what the file says. Nothing can be read
    from this process by then."""
    streams = Streams.make()
    ours, theirs = kernel.connected_pair()
    others = 0 if tree.alone else _tasks_of_user()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        become_answer(file, theirs, streams, confine, others)
    for descriptor in (file, theirs):
        os.close(descriptor)
    kernel.hide_memory()
    return BegunAnswer(pid, os.pidfd_open(pid), ours, streams, start)


def run_job(job: Job, tree: Tree, confine: Confine, answer: BegunAnswer | None = None) -> ProgramOutcome:
    """Runs the job's steps in the current directory. `confine` takes a child's rights away just before the program."""
    if answer is not None:
        return _run_apart(job, tree, confine, answer)
    outcome = _run_steps(job, tree, confine)
    if job.refutation is None or not _passed(outcome, job):
        return outcome
    _sweep(tree)
    again = _run_steps(job.refutation, tree, confine)
    return replace(outcome, forged=True) if _passed(again, job.refutation) else outcome


def _passed(outcome: ProgramOutcome, job: Job) -> bool:
    if job.silent and outcome.stderr:
        return False
    return outcome.ending == "exited" and outcome.exit_code == 0 and outcome.reached_end


def _sweep(tree: Tree) -> None:
    """Empties the places that programs can write in, so that a program cannot find that it has run before."""
    here = os.getcwd()
    shared = ("/tmp", "/dev/shm") if tree.alone else ()  # noqa: S108 - the job's own
    for folder in (here, *shared):
        for entry in os.scandir(folder) if os.path.isdir(folder) else ():
            if entry.is_dir(follow_symlinks=False):
                if not f"{here}/".startswith(f"{entry.path}/") and entry.name != "home":
                    import shutil  # seldom, and large

                    shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _run_steps(job: Job, tree: Tree, confine: Confine) -> ProgramOutcome:
    _write(job.files)
    outcome = None
    for number, step in enumerate(job.steps):
        if number and step.name == "run":  # the sources hold the tests; a compiled program does not need them
            _remove(name for names in (job.files, *(other.files for other in job.steps)) for name in names)
        _write(step.files)
        run = _run_step if step.beside is None else _run_beside
        outcome = run(job, step, tree, confine)
        if outcome.ending != "exited" or outcome.exit_code != 0:
            break
    assert outcome is not None, "a job has at least one step"
    return outcome


def _write(files: dict[str, str]) -> None:
    for name, text in files.items():
        path = os.path.join(os.getcwd(), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as stream:
            stream.write(text)
        os.chmod(path, 0o644)


def _remove(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _run_step(job: Job, step: Command, tree: Tree, confine: Confine) -> ProgramOutcome:
    pipes = Streams.make()
    end = EndOfScript() if not step.argv else None
    others = 0 if tree.alone else _tasks_of_user()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        become_program(job, step, pipes, end.theirs if end else None, confine, others)
    pipes.close_writing()
    if end is not None:
        os.close(end.theirs)
    handle = os.pidfd_open(pid)
    streams = {pipes.out_read: bytearray(), pipes.err_read: bytearray()}
    try:
        ending = _watch(handle, handle, streams, end, step, job.limits, tree, start)
        _, status, used = os.wait4(pid, 0)
        tree.kill()
        if ending == "exited":  # the pipes are closed by now at every other end
            _drain(streams, job.limits.output_bytes)
        while end is not None and end.serve():
            pass
    finally:
        if end is not None:
            end.close()
        for fd in (handle, *streams):
            os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    printed = Printed(*(bytes(data).decode("utf-8", "replace") for data in streams.values()))
    ending = _told_apart(ending, code, used, printed, job, step)
    reached_end = ending == "exited" and (printed.stdout.endswith(job.sentinel) if end is None else end.reached)
    if reached_end and end is None:
        printed = Printed(printed.stdout[: -len(job.sentinel)], printed.stderr)
    return _outcome(step, code, ending, printed, reached_end, start, job.limits)


def _run_beside(job: Job, step: Command, tree: Tree, confine: Confine) -> ProgramOutcome:
    """Runs a program and the program of its tests at once. What the tests print has a pipe of its own."""
    assert step.beside is not None
    pipes, out = Streams.make(), os.pipe()
    ours, theirs = kernel.connected_pair()
    others = 0 if tree.alone else _tasks_of_user()
    held = _held(step, step.beside)
    start = time.monotonic()
    pids = [os.fork()]
    if pids[0] == 0:
        become_program(job, step, pipes, theirs, confine, others)
    pids.append(os.fork())
    if pids[1] == 0:
        streams = Streams(out[0], out[1], pipes.err_read, pipes.err_write)
        become_tests(job, step, step.beside, streams, ours, held, confine, others)
    pipes.close_writing()
    for descriptor in (ours, theirs, out[1], *filter(None, [held])):
        os.close(descriptor)
    handles = [os.pidfd_open(pid) for pid in pids]
    streams_read = {pipes.out_read: bytearray(), pipes.err_read: bytearray(), out[0]: bytearray()}
    ended: list[Ending] = []
    for (
        handle
    ) in handles:  # the program ends by itself when the connection is closed: it has no other way to say its code
        ended.append(_watch(handle, handles[0], streams_read, None, step, job.limits, tree, start))
        if ended[-1] != "exited":
            signal.pidfd_send_signal(handles[1], signal.SIGKILL)
    waited = [os.wait4(pid, 0) for pid in pids]
    codes = [os.waitstatus_to_exitcode(status) for _, status, _ in waited]
    tree.kill()
    ending: Ending = next((word for word in ended if word != "exited"), "exited")
    if ending == "exited":
        _drain(streams_read, job.limits.output_bytes)
    for fd in (*handles, *streams_read):
        os.close(fd)
    said, complaints, told = (bytes(data).decode("utf-8", "replace") for data in streams_read.values())
    code = codes[0] if codes[1] in (0, ANSWER_GONE_EXIT) else codes[1]
    code = code or (1 if codes[1] else 0)
    ending = _told_apart(ending, code, waited[0][2], Printed(said + told, complaints), job, step)
    reached_end = ending == "exited" and code == 0 and told.endswith(job.sentinel)
    printed = Printed(said + told.removesuffix(job.sentinel), complaints)
    return _outcome(step, code, ending, printed, reached_end, start, job.limits)


def _held(step: Command, beside: Beside) -> int | None:
    """The tests' program, or the archive that it reads, by a descriptor and without a name: nobody else can read it any more,
    or put another in its place. A program that is the answer's as well keeps its name."""
    if beside.packed:
        return _packed(beside.packed)
    program = beside.argv[0]
    if "/" not in program or os.path.isabs(program):
        return None
    held = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    if program != step.argv[0]:
        os.unlink(program)
    return held


def _packed(folder: str) -> int:
    """A zip archive of a folder's files, which are removed."""
    import zipfile  # here, because every page that a worker holds makes each of its forks slower
    from pathlib import Path

    held = os.memfd_create(folder)
    with os.fdopen(os.dup(held), "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                archive.write(path)
                path.unlink()
    return held


class _Testing:
    """Runs tests in a thread, so that this process goes on to watch. `ended` becomes readable when they have ended."""

    def __init__(self, line: int, apart: Apart) -> None:
        self.ended, self._ending = os.pipe()
        self._line, self._apart = line, apart
        self._outcomes: list[TestsOutcome] = []
        _thread.start_new_thread(self._run, ())  # without the module threading, whose care for forks costs each of them

    def _run(self) -> None:
        try:
            self._outcomes.append(run_tests(Line(self._line), self._apart))
        finally:
            os.close(self._ending)

    @property
    def outcome(self) -> TestsOutcome | None:
        """None while they run."""
        return self._outcomes[0] if self._outcomes else None


def _run_apart(job: Job, tree: Tree, confine: Confine, answer: BegunAnswer) -> ProgramOutcome:
    """Runs the tests of a program that has begun here, without any rights that the program lacks.

    One process less than with another one for the tests, of which each costs milliseconds. The program, which has the same
    user, can neither read this process nor, where that is the first of its process space, send it a signal.
    """
    [step] = job.steps
    assert step.apart is not None
    answer.streams.close_writing()
    start = answer.start
    confine(signals=True)
    kernel.hide_memory()  # again: a change of user may have undone it
    resource.setrlimit(resource.RLIMIT_DATA, (job.limits.memory_bytes, job.limits.memory_bytes))
    streams = {answer.streams.out_read: bytearray(), answer.streams.err_read: bytearray()}
    testing = _Testing(answer.line, step.apart)
    ending = _watch(testing.ended, answer.handle, streams, None, step, job.limits, tree, start)
    tests = testing.outcome or TestsOutcome(1, "", "")
    code, (ended, status, used) = tests.code, os.wait4(answer.pid, os.WNOHANG)
    if not ended:
        if code == ANSWER_GONE_EXIT:  # it has closed its connection, and ends or is made to
            select.select([answer.handle], [], [], _ANSWER_SECONDS)
            ended, status, used = os.wait4(answer.pid, os.WNOHANG)
        if not ended:
            os.kill(answer.pid, signal.SIGKILL)
            used = os.wait4(answer.pid, 0)[2]
    if ended and code != 0:
        code = os.waitstatus_to_exitcode(status) or code
    tree.kill()
    if ending == "exited":
        _drain(streams, job.limits.output_bytes)
    texts = [bytes(data).decode("utf-8", "replace") for data in streams.values()]
    printed = Printed(texts[0] + tests.printed, texts[1] + tests.complaint)
    ending = _told_apart(ending, code, used, printed, job, step)
    return _outcome(step, code, ending, printed, ending == "exited" and tests.code == 0, start, job.limits)


@dataclass(frozen=True)
class Printed:
    """What the processes of a step printed."""

    stdout: str
    stderr: str


def _told_apart(
    ending: Ending, code: int, used: resource.struct_rusage, printed: Printed, job: Job, step: Command
) -> Ending:
    """The ending, with limits that show only afterwards."""
    if ending == "exited" and len(printed.stdout) + len(printed.stderr) > job.limits.output_bytes:
        ending = "output"
    # Runtimes that catch SIGXCPU say so (Go), or are killed a second later. The kernel counts the limit in whole clock
    # ticks and the usage in time really run: where a hypervisor takes the processor away, 1 s by the first was seen to
    # be less than 0.9 s by the second. Half tells the limit from a signal the program sent itself at its start.
    over = code == -signal.SIGXCPU or (code > 0 and "SIGXCPU" in printed.stderr) or code == -signal.SIGKILL
    if ending == "exited" and over and used.ru_utime + used.ru_stime >= 0.5 * step.cpu_seconds:
        ending = "cpu_time"
    return ending


def _outcome(
    step: Command,
    code: int,
    ending: Ending,
    printed: Printed,
    reached_end: bool,
    start: float,
    limits: JobLimits,
) -> ProgramOutcome:
    keep, seconds = limits.output_bytes, round(time.monotonic() - start, 4)
    return ProgramOutcome(step.name, code, ending, printed.stdout[:keep], printed.stderr[:keep], reached_end, seconds)


def _watch(
    ended: int,
    handle: int,
    streams: dict[int, bytearray],
    end: EndOfScript | None,
    step: Command,
    limits: JobLimits,
    tree: Tree,
    start: float,
) -> Ending:
    """Reads what the program prints until it ends or passes a limit, and then kills it.

    ended: readable when the step is over. handle: the program's process.
    """
    poll = select.poll()
    for fd in (ended, *streams, *([end.ours] if end else [])):
        poll.register(fd, select.POLLIN)
    next_look = start + _TICK_SECONDS
    while True:
        now = time.monotonic()
        left = start + step.wall_seconds - now
        ending: Ending = "wall_clock" if left <= 0 else "exited"
        if now >= next_look:
            next_look = now + _TICK_SECONDS
            processes, resident = tree.usage()
            # The kernel's own limit stops most programs at `processes`; this stops what that limit does not bind.
            if processes > limits.processes + 8:
                ending = "processes"
            if resident > limits.memory_bytes:
                ending = "memory"
        if sum(map(len, streams.values())) > limits.output_bytes:
            ending = "output"
        if ending != "exited":
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return ending
        for fd, _ in poll.poll(1000 * max(0.0, min(left, next_look - now))):
            if fd == ended:
                return "exited"
            if end is not None and fd == end.ours:
                if not end.serve():
                    poll.unregister(fd)
                continue
            data = os.read(fd, 65536)
            streams[fd] += data
            if not data:
                poll.unregister(fd)


def _drain(streams: dict[int, bytearray], limit: int) -> None:
    for fd, data in streams.items():
        while len(data) <= limit:
            more = os.read(fd, 65536)
            if not more:
                break
            data += more
