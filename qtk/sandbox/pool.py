"""Finds the strongest level that works on this machine, and runs jobs in parallel workers at that level."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_args

from qtk.errors import InputError, MachineError
from qtk.machine import usable_cores
from qtk.sandbox import kernel
from qtk.sandbox.jail import JailPlan, hidden_paths, readable_paths
from qtk.sandbox.job import (
    ANSWER_NAME,
    JOB_NAME,
    OUTCOME_NAME,
    Command,
    Job,
    JobLimits,
    Level,
    ProgramOutcome,
    broken_sandbox,
)

Key = TypeVar("Key")

_PROMISES: dict[Level, str] = {
    "namespaces": "own user id, process space, mounts, IPC, no network, read-only root; limits on memory, processes, "
    "processor time, files and output",
    "bubblewrap": "bubblewrap: own process, network, mount and IPC namespaces, read-only root; limits on memory, "
    "processes, processor time, size of files and output; outside, the caller's user id without capabilities",
    "user-namespaces": "own process, mount and IPC namespaces, no network, read-only root; limits on memory, processes, "
    "processor time, files and output; outside, the caller's user id without capabilities",
    "rlimits": "NOT a sandbox: limits, a fresh directory and an empty environment only",
}


def promise(level: Level) -> str:
    """What a level promises on this machine; Landlock's promise depends on the kernel."""
    return landlock_promise(kernel.landlock_abi()) if level == "landlock" else _PROMISES[level]


def landlock_promise(abi: int) -> str:
    """What this version of Landlock holds, and as plainly what it does not hold yet."""
    gaps = [
        text
        for since, text in (
            (3, "files outside that its user may write can be cut short"),
            (4, "TCP is not blocked"),
            (6, "signals to other processes are not blocked, nor abstract sockets"),
        )
        if abi < since
    ]
    kept = "reads and writes only below its own directory and what it needs to run" + (", no TCP" if abi >= 4 else "")
    always = "NO process isolation: UDP and Unix sockets are not blocked, the process list is visible"
    root = ["as root only the watch limits processes"] if os.geteuid() == 0 else []
    return "; ".join([f"{kept} (Landlock {abi})", always, *gaps, *root])


_FIRST_USER = 390_000  # user ids that no account uses; each worker takes one, so that process limits do not add up
_PRELOADED = (
    *("math", "re", "sys", "copy", "datetime", "itertools", "collections", "heapq", "statistics", "functools"),
    *("hashlib", "string", "typing", "random", "unittest", "numpy", "ast", "bisect", "cmath", "fractions", "decimal"),
)


def preference() -> tuple[Level, ...]:
    """Levels from the strongest down. As root `namespaces` comes before bubblewrap, because it also changes the user id."""
    if os.geteuid() == 0:
        return ("namespaces", "bubblewrap", "user-namespaces", "landlock")
    return ("bubblewrap", "user-namespaces", "landlock")


@functools.cache
def why_not(level: Level) -> str:
    """Empty when a trial job runs at this level on this machine, else the reason it does not."""
    if level == "namespaces" and os.geteuid() != 0:
        return "needs root"
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    trial = Job({"main.py": "open('x', 'w').write('y')\n"}, (Command("run", script="main.py"),), "trial-ended")
    try:
        with Workers(level, count=1, preload=()) as workers:
            _, outcome = next(iter(workers.run([(0, trial)])))
    except MachineError as error:
        return str(error)
    return "" if outcome.reached_end else f"a trial program did not run: {outcome.stderr.strip()[-300:]}"


def choose_level(wanted: str = "auto", allow_unsandboxed: bool = False) -> Level:
    """The level to use: the one that is named and no other, or for "auto" the strongest that works here.

    MachineError where the named level, or none, works. allow_unsandboxed: for "auto", limits alone are better than nothing.
    """
    if wanted == "rlimits" and not allow_unsandboxed:
        raise InputError(
            "The level rlimits is not a sandbox. If you trust the programs, give --allow-unsandboxed as well."
        )
    if wanted != "auto" and wanted not in get_args(Level):
        raise InputError(f"There is no sandbox level {wanted!r}. Levels: auto, {', '.join(get_args(Level))}.")
    candidates: tuple[Level, ...] = preference() if wanted == "auto" else (wanted,)  # type: ignore[assignment]
    reasons = []
    for level in candidates:
        reason = why_not(level)
        if not reason:
            return level
        reasons.append(f"  {level}: {reason}")
    if wanted != "auto":
        raise MachineError(
            f"The sandbox level {wanted} does not work on this machine:\n" + "\n".join(reasons) + "\n"
            "Name another level, or leave --sandbox at auto for the strongest that works."
        )
    if allow_unsandboxed:
        return "rlimits"
    raise MachineError(
        "This machine has no sandbox for generated programs:\n" + "\n".join(reasons) + "\n"
        "Install bubblewrap, or allow user namespaces. --allow-unsandboxed runs programs with limits only."
    )


class _WorkerProcess:
    """One worker process and the two pipes to it."""

    def __init__(self, plan: JailPlan, preload: tuple[str, ...]) -> None:
        root = Path(__file__).resolve().parents[2]
        # Nothing of the caller's environment, because forked programs inherit the worker's.
        environment = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "PATH": _PATH, "LC_ALL": "C.UTF-8"}
        # One arena, because a thread's own would be made and unmade for each job. One thread in numpy's products: more
        # threads than the forked programs' limit would end each of them.
        environment |= {
            "MALLOC_ARENA_MAX": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtk.sandbox.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,  # an interrupt at the terminal is ours to handle
        )
        self._scratch = Path(plan.scratch)
        self._send(json.dumps(plan.as_json()) + "\n" + json.dumps(preload) + "\n")
        answer = self._receive()
        if "ready" not in answer:
            self.stop()
            raise MachineError(str(answer.get("broken", answer)))

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, job: Job) -> ProgramOutcome:
        """The worker is told that there is a job, and its supervisor reads it: see `qtk.sandbox.worker`."""
        if (answer := job.answer) is not None:
            self._write(ANSWER_NAME, answer.as_json())
            job = replace(job, files={})
        self._write(JOB_NAME, job.as_json())
        self._send(json.dumps(job.notice.as_json()) + "\n")
        told = self._receive()
        if told["broken"]:
            return broken_sandbox(told["broken"])
        try:
            outcome = ProgramOutcome(**json.loads((self._scratch / OUTCOME_NAME).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            return broken_sandbox(f"the supervisor's answer cannot be read: {error}")
        if outcome.ending == "exited" and outcome.exit_code != 0 and told["killed_for_memory"]:
            return replace(outcome, ending="memory")
        return outcome

    def _write(self, name: str, data: dict[str, Any]) -> None:
        file = os.open(f"{self._scratch}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(file, "wb") as stream:
            stream.write(json.dumps(data).encode())

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # a worker that has ended says why in its answer
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        complaint = self._process.stderr.read()[-500:].decode("utf-8", "replace")
        return {"broken": f"the sandbox worker ended: {complaint.strip() or 'no message'}"}

    def hang_up(self) -> None:
        """Closes the worker's input: it kills the job it runs, tidies up and ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def stop(self) -> None:
        """Ends the worker and waits for it."""
        self.hang_up()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Workers:
    """`count` worker processes at one level. hidden: files and folders that no program may read though they lie below a
    readable path (at the level rlimits nothing is hidden).

    with Workers("namespaces") as workers:
        for key, outcome in workers.run(jobs): ...
    """

    def __init__(
        self,
        level: Level,
        *,
        count: int | None = None,
        readable: tuple[str, ...] = (),
        preload: tuple[str, ...] = _PRELOADED,
        hidden: tuple[str, ...] = (),
    ) -> None:
        self.level = level
        self.count = count or usable_cores()
        self._preload = preload
        self._readable = readable_paths(readable)
        self._hidden = hidden_paths(hidden)
        self._processes: list[_WorkerProcess] = []
        self._free: list[_WorkerProcess] = []
        self._lock = threading.Lock()
        self._scratch: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """A program's whole environment: paths inside the jail, or its own directory where the level has no namespaces."""
        private = self.level in ("namespaces", "user-namespaces", "bubblewrap")
        home, temporary = ("/tmp/home", "/tmp") if private else (".", ".")  # noqa: S108
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return {"PATH": _PATH, "HOME": home, "TMPDIR": temporary, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"} | threads

    def __enter__(self) -> Workers:
        try:
            for number in range(self.count):
                self._scratch.append(tempfile.mkdtemp(prefix="qtk-sandbox-"))
                user = _FIRST_USER + (os.getpid() % 10_000) * 16 + number % 16
                plan = JailPlan(self.level, self._scratch[-1], self._readable, user, self._hidden)
                self._processes.append(_WorkerProcess(plan, self._preload))
        except BaseException:
            self._stop()
            raise
        self._free = list(self._processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()
        for directory in self._scratch:
            shutil.rmtree(directory, ignore_errors=True)

    def worker_pids(self) -> list[int]:
        """The process ids of the workers, of which every program is a descendant."""
        return [process.pid for process in self._processes]

    def scratch_directories(self) -> list[str]:
        """The workers' own directories outside the jails; gone when the workers have ended."""
        return list(self._scratch)

    def _run_one(self, key: Key, job: Job) -> tuple[Key, ProgramOutcome]:
        with self._lock:
            process = self._free.pop()
        try:
            return key, process.run(job)
        finally:
            with self._lock:
                self._free.append(process)

    def run(self, jobs: Iterable[tuple[Key, Job]]) -> Iterator[tuple[Key, ProgramOutcome]]:
        """Runs the jobs, at most `count` at a time, and yields each outcome when it is there. A worker's failure ends the run."""
        pending: set[Future[tuple[Key, ProgramOutcome]]] = set()
        source = iter(jobs)
        with ThreadPoolExecutor(self.count) as threads:
            try:
                while True:
                    while len(pending) < 2 * self.count and (item := next(source, None)) is not None:
                        pending.add(threads.submit(self._run_one, item[0], item[1]))
                    if not pending:
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except BaseException:
                for future in pending:
                    future.cancel()
                for process in self._processes:
                    process.hang_up()  # so that no thread waits for a program's clock to run out
                raise


def limits_note(limits: JobLimits, level: Level, seconds: float) -> str:
    """The limits that are in force at a level, in words, for reports."""
    private = level in ("namespaces", "bubblewrap", "user-namespaces")
    files = f"{limits.disk_bytes >> 20} MiB of files" if private else f"{limits.file_bytes >> 20} MiB a file"
    return (
        f"{seconds:g} s a run, {limits.memory_bytes >> 20} MiB memory, {limits.processes} processes, "
        f"{limits.output_bytes >> 10} KiB output, {files}"
    )
