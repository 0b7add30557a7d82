"""Jobs that are hostile, and what must be true after each."""

from __future__ import annotations

import contextlib
import sys
import time

import psutil
import pytest

from qtk.sandbox.job import MIB, Command, Job, JobLimits, ProgramOutcome
from qtk.sandbox.pool import Workers

SMALL = JobLimits(memory_bytes=256 * MIB, processes=32, output_bytes=32 * 1024, file_bytes=8 * MIB, disk_bytes=32 * MIB)

SENTINEL = "the-end-7f3a"

SHUT_IN = ("namespaces", "bubblewrap", "user-namespaces")

LEVELS = (*SHUT_IN, "landlock")

# For what the supervisor does alike at all levels: the fast tests try the tightest and the loosest, the slow ones those between.
ALIKE = pytest.mark.parametrize(
    "workers",
    [pytest.param(level, marks=[] if level in ("namespaces", "landlock") else pytest.mark.slow) for level in LEVELS],
    indirect=True,
    scope="module",
)


def python_job(program: str, seconds: float = 10.0, limits: JobLimits = SMALL, started: bool = False) -> Job:
    """A program for the worker's own Python, forked, or `started` as a fresh interpreter."""
    argv = (sys.executable, "main.py") if started else ()
    step = Command("run", argv=argv, script="main.py", wall_seconds=seconds, cpu_seconds=5)
    return Job({"main.py": program}, (step,), SENTINEL, {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}, limits)


def run(workers: Workers, program: str, **settings: object) -> ProgramOutcome:
    [(_, outcome)] = workers.run([(0, python_job(program, **settings))])  # type: ignore[arg-type]
    return outcome


def still_sound(workers: Workers) -> None:
    """The same worker runs the next program as if nothing had been, and no process of a job is left."""
    outcome = run(workers, "import os\nassert os.listdir('.') == ['main.py']\n")
    assert outcome.reached_end, outcome
    worker = psutil.Process(workers.worker_pids()[0])
    deadline = time.monotonic() + 10  # the outcome comes before the kernel has dismantled the job's namespaces
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(worker) == []


def alive(worker: psutil.Process) -> list[psutil.Process]:
    """Its descendants that still run. The last jobs' ended supervisors may wait to be reaped with a later job."""
    found = []
    for child in worker.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found
