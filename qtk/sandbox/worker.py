"""A worker process: reads notices of jobs from standard input, one JSON line each, runs one at a time, and answers with a
line each.

Started with an empty environment as `python -m qtk.sandbox.worker`. Each job gets a forked supervisor and namespaces of its
own. The interpreter, with the modules that programs import most, is shared by copy-on-write only. So a Python program
starts in milliseconds and still cannot touch what the next program gets.

A forked program finds in its memory what this process ever held. So this process reads neither a job nor an outcome: both
are files in its scratch directory, which the supervisor reads and writes. Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from qtk.sandbox import kernel
from qtk.sandbox.control_group import ControlGroup, make_control_group
from qtk.sandbox.jail import SHARED_BYTES, DirectoryJail, JailPlan, NamespaceJail, OuterJail
from qtk.sandbox.job import (
    ANSWER_NAME,
    JOB_NAME,
    OUTCOME_NAME,
    Job,
    JobLimits,
    JobNotice,
    ProgramOutcome,
    broken_sandbox,
)
from qtk.sandbox.rehearsal import rehearse
from qtk.sandbox.supervisor import Tree, begun_answer, run_job
from qtk.sandbox.system_calls import leave_session_keyring, prepare_filter

_MODULE = "qtk.sandbox.worker"  # under -m this file's own name is __main__
_ANSWER = 200  # the descriptor of what an answer's process reads, through bwrap
_AT_ONCE = 4  # guards that may still be leaving while the next job starts
_GRACE_SECONDS = 15.0  # beyond the steps' own clocks, which the supervisor keeps


@dataclass(frozen=True)
class _Papers:
    """Open files of one job: what a supervisor reads the job from, what it writes the outcome to, and what the process of an
    answer reads whose tests run apart (None where they do not)."""

    job: int
    outcome: int
    answer: int | None

    def read_job(self) -> Job:
        with open(self.job, "rb", buffering=0, closefd=False) as stream:
            return Job.from_json(json.loads(stream.read()))

    def write_outcome(self, outcome: ProgramOutcome) -> None:
        if os.fstat(self.outcome).st_size:  # ext4 puts a file that was cut short on the disk as soon as it is closed
            os.ftruncate(self.outcome, 0)
        data = json.dumps(outcome.as_json()).encode()
        while data:
            data = data[os.write(self.outcome, data) :]

    def close(self) -> None:
        for file in (self.job, self.outcome, self.answer):
            if file is not None:
                os.close(file)


class Worker:
    """Runs jobs in one jail. `run` returns what the supervisor said, or why it said nothing."""

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

    def run(self, notice: JobNotice) -> dict[str, Any]:
        """Runs the job of the scratch directory. How the outcome's file is to be read: `outcome` where there is none."""
        if self.group is None:
            self.group = self._made_group(notice)
        before = self.group.killed_for_memory()
        papers = self._open_papers(notice)
        read, write = os.pipe()
        start = self._fork_supervisor if self._own_space is not None else self._fork_guard
        guard = start(notice, papers, write)
        os.close(write)
        papers.close()
        ending = self._await(read, guard, notice.seconds + _GRACE_SECONDS)
        if isinstance(self.jail, DirectoryJail) or ending != "":
            self.group.kill()
        if isinstance(self.jail, DirectoryJail):
            Tree(alone=False).kill()  # what the guard left, should the guard itself have been killed
            self._leaving.clear()
            self.jail.tidy()
        self._bury(_AT_ONCE)
        return {"broken": ending, "killed_for_memory": self.group.killed_for_memory() > before}

    def _made_group(self, notice: JobNotice) -> ControlGroup:
        group = make_control_group(f"qtk-{os.getpid()}", notice.limits)
        if group.lasting:
            group.enter()
            kernel.rank_for_memory_killer(-1000)  # not the worker, should the group's memory be used up
        return group

    def _open_papers(self, notice: JobNotice) -> _Papers:
        """Opened here, where their place can be seen; what is in them is read and written by the processes of the job alone."""
        job, answer = self._taken(JOB_NAME), self._taken(ANSWER_NAME) if notice.apart else None
        place, flags = f"{self.plan.scratch}/{OUTCOME_NAME}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):  # that of the job before
            os.unlink(place)
        return _Papers(job, os.open(place, flags, 0o600), answer)

    def _taken(self, name: str) -> int:
        """A file of the scratch directory, which has no name any more."""
        file = os.open(f"{self.plan.scratch}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(f"{self.plan.scratch}/{name}")
        return file

    def _bury(self, keep: int) -> None:
        """Waits for ended guards until at most `keep` are left.

        The kernel takes milliseconds to dismantle namespaces whose processes are dead; the next job need not wait.
        """
        self._leaving = [guard for guard in self._leaving if os.waitpid(guard, os.WNOHANG)[0] == 0]
        while len(self._leaving) > keep:
            os.waitpid(self._leaving.pop(0), 0)

    def _fork_supervisor(self, notice: JobNotice, papers: _Papers, write: int) -> int:
        """As root one fork is enough: the worker sends its next child into a new process space, and stays outside itself."""
        assert self.jail is not None
        assert self._own_space is not None
        assert self.group is not None
        self.jail.separate()
        supervisor = os.fork()
        if supervisor == 0:
            _supervise(self.jail, notice, papers, write, None if self.group.lasting else self.group)
        kernel.enter_process_space(self._own_space)
        return supervisor

    def _fork_guard(self, notice: JobNotice, papers: _Papers, write: int) -> int:
        guard = os.fork()
        if guard == 0:
            self._guard(notice, papers, write)
        return guard

    def end(self) -> None:
        """Removes what the worker made: its processes, the control group, the scratch directory."""
        self._bury(0)
        if self.group is not None:
            if self.group.lasting:
                self.group.leave()
            self.group.remove()
        with contextlib.suppress(OSError):
            if self.jail is not None:
                self.jail.leave()
            for name in (JOB_NAME, ANSWER_NAME, OUTCOME_NAME):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.plan.scratch}/{name}")
            os.rmdir(self.plan.scratch)

    def _guard(self, notice: JobNotice, papers: _Papers, write: int) -> None:
        """In the forked guard: separates, forks the supervisor (process 1 inside), and ends when that ends."""
        try:
            kernel.die_with_parent()
            assert self.group is not None
            if not self.group.lasting:
                self.group.enter()
            if self.jail is None:
                _exec_bubblewrap(self.plan, notice, papers)
                _answer(write, {"ended": True})
            else:
                self.jail.separate()
                supervisor = os.fork()
                if supervisor == 0:
                    _supervise(self.jail, notice, papers, write, None)
                os.close(write)
                os.waitpid(supervisor, 0)
        except BaseException as error:
            papers.write_outcome(broken_sandbox(f"{type(error).__name__}: {error}"))
            _answer(write, {"ended": True})
        finally:
            os._exit(0)

    def _await(self, read: int, guard: int, seconds: float) -> str:
        """Empty when there is an outcome, else why there is none. The guard is killed when the supervisor is late, or when
        the caller of this worker is gone."""
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
            return f"the supervisor gave no answer within {seconds:.0f} s"
        return "" if data else "the supervisor ended without an answer"


def _supervise(jail: Any, notice: JobNotice, papers: _Papers, write: int, group: ControlGroup | None) -> None:
    """In the supervisor. Never returns."""
    try:
        if group is not None:
            group.enter()
        if os.getsid(0) != os.getpid():  # bubblewrap has made it one already
            os.setsid()
        jail.close(notice.limits)
        tree = Tree(jail.alone)
        answer = (
            None if papers.answer is None else begun_answer(papers.answer, tree, jail.confine)
        )  # before the job is read
        outcome = run_job(papers.read_job(), tree, jail.confine, answer)
    except BaseException as error:
        outcome = broken_sandbox(f"{type(error).__name__}: {error}")
    papers.write_outcome(outcome)
    _answer(write, {"ended": True})
    os._exit(0)


def _answer(write: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    while data:
        data = data[os.write(write, data) :]


def bubblewrap_command(plan: JailPlan, limits: JobLimits, package_root: str) -> list[str]:
    """bwrap's arguments: everything of its own, the readable paths read-only, a size-limited temp directory."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--as-pid-1"]
    words += ["--uid", "1000", "--gid", "1000", "--setenv", "PYTHONPATH", package_root, "--cap-drop", "ALL"]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    words += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    shown = dict.fromkeys((*plan.readable, os.path.join(package_root, "qtk")))  # some may lie below /tmp
    for path in shown:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
            path = os.path.realpath(path)
            if any(path == other or path.startswith(other + "/") for other in shown if not os.path.islink(other)):
                continue
        words += ["--ro-bind", path, path]
    for path in plan.hidden:
        if any(path.startswith(os.path.realpath(other) + "/") for other in shown):
            words += (
                ["--tmpfs", path, "--remount-ro", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]
            )
    words += ["--remount-ro", "/dev", "--remount-ro", "/"]  # last: nothing can be mounted below them afterwards
    return [*words, "--chdir", "/tmp", sys.executable, "-m", _MODULE, "--inside"]  # noqa: S108


def _exec_bubblewrap(plan: JailPlan, notice: JobNotice, papers: _Papers) -> None:
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))
    import subprocess  # here, because every module that a worker holds makes each of its forks slower

    command = [*bubblewrap_command(plan, notice.limits, root), json.dumps(notice.as_json())]
    if papers.answer is not None:
        os.dup2(papers.answer, _ANSWER)
    passed = () if papers.answer is None else (_ANSWER,)
    told = subprocess.run(command, stdin=papers.job, stdout=papers.outcome, stderr=subprocess.PIPE, pass_fds=passed)
    if told.returncode:
        raise OSError(told.returncode, f"bwrap: {told.stderr[-300:].decode('utf-8', 'replace')}")


def inside_bubblewrap(notice: JobNotice) -> None:
    """Main of the supervisor that bwrap started: the job is standard input, the outcome standard output, what the answer's
    process reads the descriptor behind those."""
    papers = _Papers(os.dup(0), os.dup(1), _ANSWER if notice.apart else None)
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    _supervise(OuterJail(), notice, papers, nothing, None)


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
        _answer(out, {"broken": str(error)})
        os.write(out, b"\n")
        return
    leave_session_keyring()  # for all jobs at once: none of them may use a keyring
    prepare_filter()
    rehearse()
    gc.collect()
    gc.freeze()  # so that a collection in a forked program does not touch, and so copy, every shared page
    gc.disable()
    os.write(out, (json.dumps({"ready": True, "not_imported": failed}) + "\n").encode())
    try:
        for line in sys.stdin.buffer:
            _answer(out, worker.run(JobNotice.from_json(json.loads(line))))
            os.write(out, b"\n")
    finally:
        worker.end()


if __name__ == "__main__":
    if "--inside" in sys.argv:
        inside_bubblewrap(JobNotice.from_json(json.loads(sys.argv[-1])))
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
