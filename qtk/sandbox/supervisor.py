"""Runs a job's steps, one child process after the other, within limits, and kills whatever a step leaves behind.

This process is trusted and stands between the worker and the program. Where the job has a process space of its own, this is
process 1 there; elsewhere this process adopts every orphan. Standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable

from qtk.sandbox.job import Command, Ending, Job, JobLimits, ProgramOutcome

_TICK_SECONDS = 0.025
_PAGE = os.sysconf("SC_PAGE_SIZE")
SYNTAX_ERROR_EXIT, MEMORY_ERROR_EXIT = 97, 98  # what a forked Python program ends with in these two cases
_MODULE = "program"  # not __main__: what a script does only as the main program is not part of an answer


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
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as statm:
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
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self._word = b""
        self.reached = False

    def serve(self) -> bool:
        """Answers one message of the program. False when there is no message."""
        try:
            message = self.ours.recv(64)
        except OSError:
            return False
        if message == b"?":
            self._word = self._word or os.urandom(16)
            with contextlib.suppress(OSError):
                self.ours.send(self._word)
        elif message:
            self.reached = self.reached or message == self._word
        return message != b""

    def close(self) -> None:
        self.ours.close()


def _tasks_of_user() -> int:
    """How many processes and threads this user has. Outside a user id of the job's own, the kernel's limit counts them all."""
    user, found = os.getuid(), 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                found += len(os.listdir(f"/proc/{name}/task"))
    return found


def run_job(job: Job, tree: Tree, confine: Callable[[], None]) -> ProgramOutcome:
    """Runs the job's steps in the current directory. `confine` takes a child's rights away just before the program."""
    for name, text in job.files.items():
        path = os.path.join(os.getcwd(), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as stream:
            stream.write(text)
        os.chmod(path, 0o644)
    outcome = None
    for number, step in enumerate(job.steps):
        if number and step.name == "run":  # the sources hold the sentinel; a compiled program does not need them
            _remove(job.files)
        outcome = _run_step(job, step, tree, confine)
        if outcome.ending != "exited" or outcome.exit_code != 0:
            break
    assert outcome is not None, "a job has at least one step"
    return outcome


def _remove(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _run_step(job: Job, step: Command, tree: Tree, confine: Callable[[], None]) -> ProgramOutcome:
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    end = EndOfScript() if not step.argv else None
    others = 0 if tree.alone else _tasks_of_user()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become_program(job, step, out_write, err_write, end, confine, others)
    os.close(out_write)
    os.close(err_write)
    if end is not None:
        end.theirs.close()
    handle = os.pidfd_open(pid)
    streams = {out_read: bytearray(), err_read: bytearray()}
    try:
        ending = _watch(handle, streams, end, step, job.limits, tree, start)
        _, status, used = os.wait4(pid, 0)
        tree.kill()
        if ending == "exited":  # the pipes are closed by now at every other end
            for fd, data in streams.items():
                _drain(fd, data, job.limits.output_bytes)
        while end is not None and end.serve():
            pass
    finally:
        if end is not None:
            end.close()
        for fd in (handle, out_read, err_read):
            os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    if ending == "exited" and sum(map(len, streams.values())) > job.limits.output_bytes:
        ending = "output"
    stdout, stderr = (bytes(data).decode("utf-8", "replace") for data in streams.values())
    # Runtimes that catch SIGXCPU say so (Go), or are killed a second later. The kernel counts the limit in whole clock
    # ticks and the usage in time really run: where a hypervisor takes the processor away, 1 s by the first was seen to
    # be less than 0.9 s by the second. Half tells the limit from a signal the program sent itself at its start.
    over = code == -signal.SIGXCPU or (code > 0 and "SIGXCPU" in stderr) or code == -signal.SIGKILL
    if ending == "exited" and over and used.ru_utime + used.ru_stime >= 0.5 * step.cpu_seconds:
        ending = "cpu_time"
    reached_end = ending == "exited" and (stdout.endswith(job.sentinel) if end is None else end.reached)
    if reached_end and end is None:
        stdout = stdout[: -len(job.sentinel)]
    keep = job.limits.output_bytes
    return ProgramOutcome(
        step.name, code, ending, stdout[:keep], stderr[:keep], reached_end, round(time.monotonic() - start, 4)
    )


def _watch(
    handle: int,
    streams: dict[int, bytearray],
    end: EndOfScript | None,
    step: Command,
    limits: JobLimits,
    tree: Tree,
    start: float,
) -> Ending:
    """Reads what the program prints until it ends or passes a limit, and then kills it."""
    poll = select.poll()
    for fd in (handle, *streams, *([end.ours.fileno()] if end else [])):
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
            if fd == handle:
                return "exited"
            if end is not None and fd == end.ours.fileno():
                if not end.serve():
                    poll.unregister(fd)
                continue
            data = os.read(fd, 65536)
            streams[fd] += data
            if not data:
                poll.unregister(fd)


def _drain(fd: int, data: bytearray, limit: int) -> None:
    while len(data) <= limit:
        more = os.read(fd, 65536)
        if not more:
            return
        data += more


def _become_program(
    job: Job, step: Command, out: int, err: int, end: EndOfScript | None, confine: Callable[[], None], others: int
) -> None:
    """In the child: a session of its own, limits, no rights, then the program. Never returns."""
    code = 96
    try:
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        if end is not None:
            os.dup2(end.theirs.fileno(), 3, inheritable=False)
        os.closerange(4, 1024)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _limit(job.limits, step, others)
        confine()
        if step.argv:
            os.execvpe(step.argv[0], step.argv, job.environment)  # noqa: S606 - no shell wanted
        code = _run_python(step.script, job.environment, 3)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _limit(limits: JobLimits, step: Command, others: int) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, step.cpu_seconds),
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


def _run_python(script: str, environment: dict[str, str], end: int) -> int:
    """Runs a script as a module in this forked interpreter, then says that its end was reached. Returns the exit code."""
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
    with open(script, encoding="utf-8", errors="surrogatepass", newline="") as stream:
        source = stream.read()
    try:
        program = compile(source, script, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        traceback.print_exception(type(error), error, None, file=sys.stderr)
        sys.stderr.flush()
        return SYNTAX_ERROR_EXIT
    module = types.ModuleType(_MODULE)
    module.__dict__.update(__builtins__=builtins, __file__=script)
    sys.modules[_MODULE] = module
    sys.modules["__main__"] = types.ModuleType("__main__")  # the program must not see ours
    sys.argv = [script]
    sys.path.insert(0, os.getcwd())
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the program
    try:
        exec(program, module.__dict__)  # noqa: S102 - the very purpose of this process
    except MemoryError:
        os.write(2, b"MemoryError\n")
        return MEMORY_ERROR_EXIT
    except SystemExit as error:
        os.write(2, f"SystemExit: {error.code}\n".encode("utf-8", "replace"))
        return error.code if isinstance(error.code, int) and 0 < error.code < 96 else 1
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
        return 1
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os.write(end, b"?")
    os.write(end, os.read(end, 64))
    return 0
