"""A worker process: reads jobs from standard input, one JSON line each, runs one at a time, and answers with a line each.

Started with an empty environment as `python -m qtk.sandbox.worker`. Each job gets a forked supervisor and namespaces of its
own. The interpreter, with the modules that programs import most, is shared by copy-on-write only. So a Python program
starts in milliseconds and still cannot touch what the next program gets. Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from qtk.sandbox import kernel
from qtk.sandbox.control_group import ControlGroup, make_control_group
from qtk.sandbox.jail import SHARED_BYTES, DirectoryJail, JailPlan, NamespaceJail, OuterJail
from qtk.sandbox.job import Job, ProgramOutcome, broken_sandbox
from qtk.sandbox.supervisor import Tree, run_job
from qtk.sandbox.system_calls import leave_session_keyring

_MODULE = "qtk.sandbox.worker"  # under -m this file's own name is __main__
_AT_ONCE = 4  # guards that may still be leaving while the next job starts
_GRACE_SECONDS = 15.0  # beyond the steps' own clocks, which the supervisor keeps


class Worker:
    """Runs jobs in one jail. `run` returns an outcome, whatever the program did."""

    def __init__(self, plan: JailPlan) -> None:
        self.plan = plan
        self.group: ControlGroup | None = None
        self._leaving: list[int] = []
        self._own_space: int | None = None
        self.jail: NamespaceJail | DirectoryJail | None = None
        if plan.level in ("namespaces", "user-namespaces"):
            self.jail = NamespaceJail(plan)
            if plan.level == "namespaces":
                self._own_space = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        elif plan.level in ("landlock", "rlimits"):
            self.jail = DirectoryJail(plan)
            kernel.adopt_orphans()

    def run(self, job: Job) -> ProgramOutcome:
        if self.group is None:
            self.group = make_control_group(f"qtk-{os.getpid()}", job.limits)
        before = self.group.killed_for_memory()
        read, write = os.pipe()
        guard = self._fork_supervisor(job, write) if self._own_space is not None else self._fork_guard(job, write)
        os.close(write)
        outcome = self._await(read, guard, sum(step.wall_seconds for step in job.steps) + _GRACE_SECONDS)
        if isinstance(self.jail, DirectoryJail) or outcome.ending == "sandbox":
            self.group.kill()
        if isinstance(self.jail, DirectoryJail):
            Tree(alone=False).kill()  # what the guard left, should the guard itself have been killed
            self._leaving.clear()
            self.jail.tidy()
        self._bury(_AT_ONCE)
        if outcome.ending == "exited" and outcome.exit_code != 0 and self.group.killed_for_memory() > before:
            return ProgramOutcome(**{**outcome.as_json(), "ending": "memory"})
        return outcome

    def _bury(self, keep: int) -> None:
        """Waits for ended guards until at most `keep` are left.

        The kernel takes milliseconds to dismantle namespaces whose processes are dead; the next job need not wait.
        """
        self._leaving = [guard for guard in self._leaving if os.waitpid(guard, os.WNOHANG)[0] == 0]
        while len(self._leaving) > keep:
            os.waitpid(self._leaving.pop(0), 0)

    def _fork_supervisor(self, job: Job, write: int) -> int:
        """As root one fork is enough: the worker sends its next child into a new process space, and stays outside itself."""
        assert self.jail is not None
        assert self._own_space is not None
        assert self.group is not None
        self.jail.separate()
        supervisor = os.fork()
        if supervisor == 0:
            _supervise(self.jail, job, write, self.group)
        kernel.enter_process_space(self._own_space)
        return supervisor

    def _fork_guard(self, job: Job, write: int) -> int:
        guard = os.fork()
        if guard == 0:
            self._guard(job, write)
        return guard

    def end(self) -> None:
        """Removes what the worker made: its processes, the control group, the scratch directory."""
        self._bury(0)
        if self.group is not None:
            self.group.remove()
        with contextlib.suppress(OSError):
            if self.jail is not None:
                self.jail.leave()
            os.rmdir(self.plan.scratch)

    def _guard(self, job: Job, write: int) -> None:
        """In the forked guard: separates, forks the supervisor (process 1 inside), and ends when that ends."""
        try:
            kernel.die_with_parent()
            assert self.group is not None
            self.group.enter()
            if self.jail is None:
                _exec_bubblewrap(self.plan, job, write)
            else:
                self.jail.separate()
                supervisor = os.fork()
                if supervisor == 0:
                    _supervise(self.jail, job, write, None)
                os.close(write)
                os.waitpid(supervisor, 0)
        except BaseException as error:
            _answer(write, broken_sandbox(f"{type(error).__name__}: {error}"))
        finally:
            os._exit(0)

    def _await(self, read: int, guard: int, seconds: float) -> ProgramOutcome:
        """The supervisor's answer. The guard is killed when the answer is late, or when the caller of this worker is gone."""
        deadline, data = time.monotonic() + seconds, b""
        poll = select.poll()
        poll.register(read, select.POLLIN)
        poll.register(0, 0)  # hang-up only: the caller is gone
        late = False
        while True:
            events = dict(poll.poll(1000 * max(0.0, deadline - time.monotonic())))
            if 0 in events or not events:
                late = True
                break
            more = os.read(read, 65536)
            if not more:
                break
            data += more
        if late:
            os.kill(guard, signal.SIGKILL)
        self._leaving.append(guard)
        os.close(read)
        if late:
            return broken_sandbox(f"the supervisor gave no answer within {seconds:.0f} s")
        try:
            return ProgramOutcome(**json.loads(data))
        except (ValueError, TypeError):
            return broken_sandbox(f"the supervisor ended without an answer: {data[-500:].decode('utf-8', 'replace')}")


def _supervise(jail: Any, job: Job, write: int, group: ControlGroup | None) -> None:
    """In the supervisor. Never returns."""
    try:
        if group is not None:
            group.enter()
        leave_session_keyring()
        if os.getsid(0) != os.getpid():  # bubblewrap has made it one already
            os.setsid()
        jail.close(job.limits)
        outcome = run_job(job, Tree(jail.alone), jail.confine)
    except BaseException as error:
        outcome = broken_sandbox(f"{type(error).__name__}: {error}")
    _answer(write, outcome)
    os._exit(0)


def _answer(write: int, outcome: ProgramOutcome) -> None:
    data = json.dumps(outcome.as_json()).encode()
    while data:
        data = data[os.write(write, data) :]


def bubblewrap_command(plan: JailPlan, job: Job, package_root: str) -> list[str]:
    """bwrap's arguments: everything of its own, the readable paths read-only, a size-limited temp directory."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--as-pid-1"]
    words += ["--uid", "1000", "--gid", "1000", "--setenv", "PYTHONPATH", package_root, "--cap-drop", "ALL"]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    words += ["--size", str(job.limits.disk_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    shown = dict.fromkeys((*plan.readable, os.path.join(package_root, "qtk")))  # some may lie below /tmp
    for path in shown:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
            path = os.path.realpath(path)
            if any(path == other or path.startswith(other + "/") for other in shown if not os.path.islink(other)):
                continue
        words += ["--ro-bind", path, path]
    words += ["--remount-ro", "/dev", "--remount-ro", "/"]  # last: nothing can be mounted below them afterwards
    return [*words, "--chdir", "/tmp", sys.executable, "-m", _MODULE, "--inside"]  # noqa: S108


def _exec_bubblewrap(plan: JailPlan, job: Job, write: int) -> None:
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))
    command = bubblewrap_command(plan, job, root)
    answer = subprocess.run(command, input=json.dumps(job.as_json()).encode(), stdout=write, stderr=subprocess.PIPE)
    if answer.returncode:
        raise OSError(answer.returncode, f"bwrap: {answer.stderr[-300:].decode('utf-8', 'replace')}")


def inside_bubblewrap() -> None:
    """Main of the supervisor that bwrap started: the job on standard input, the outcome on standard output."""
    job = Job.from_json(json.loads(sys.stdin.buffer.read()))
    write = os.dup(1)
    os.set_inheritable(write, False)
    os.dup2(2, 1)
    _supervise(OuterJail(), job, write, None)


def main() -> None:
    plan = JailPlan.from_json(json.loads(sys.stdin.buffer.readline()))
    out = os.dup(1)
    os.dup2(2, 1)
    failed = []
    for name in json.loads(sys.stdin.buffer.readline()):
        try:
            importlib.import_module(name)
        except ImportError:
            failed.append(name)
    try:
        worker = Worker(plan)
    except OSError as error:
        _answer(out, broken_sandbox(str(error)))
        os.write(out, b"\n")
        return
    gc.collect()
    gc.freeze()  # so that a collection in a forked program does not touch, and so copy, every shared page
    gc.disable()
    os.write(out, (json.dumps({"ready": True, "not_imported": failed}) + "\n").encode())
    try:
        for line in sys.stdin.buffer:
            _answer(out, worker.run(Job.from_json(json.loads(line))))
            os.write(out, b"\n")
    finally:
        worker.end()


if __name__ == "__main__":
    if "--inside" in sys.argv:
        inside_bubblewrap()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
