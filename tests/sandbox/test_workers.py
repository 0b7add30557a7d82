"""Workers and levels: which level is used, many jobs at once, interrupted and broken runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support.hostile_jobs import python_job

from qtk.bench.accuracy.languages.python import PYTHON
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import load_suite
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError, MachineError
from qtk.sandbox.job import Job
from qtk.sandbox.pool import Workers, choose_level, landlock_promise, promise, why_not


def test_when_the_caller_is_killed_the_job_dies_too(tmp_path):
    level = choose_level()
    script = f"""
import sys
from qtk.sandbox.pool import Workers
from qtk.sandbox.job import Command, Job
job = Job({{"main.py": "import time; time.sleep(100)"}}, (Command("run", script="main.py", wall_seconds=100),), "x")
with Workers({level!r}, count=1, preload=()) as workers:
    print(workers.worker_pids()[0], flush=True)
    list(workers.run([(0, job)]))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        worker = psutil.Process(int(caller.stdout.readline()))
        while not worker.children(recursive=True):
            time.sleep(0.02)
        caller.kill()
        worker.wait(20)


@pytest.mark.timeout(200)  # a fraction of what the programs would sleep
def test_an_interrupted_run_does_not_wait_for_the_programs():
    with Workers(choose_level(), count=2, preload=()) as workers:
        jobs = ((i, python_job("import time; time.sleep(3600)" if i else "pass", seconds=3600)) for i in range(6))
        results = workers.run(jobs)
        next(results)
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_many_jobs_run_in_parallel_and_each_keeps_its_key():
    with Workers(choose_level(), count=2, preload=()) as workers:
        jobs = [(i, python_job(f"print({i})")) for i in range(40)]
        assert {key: outcome.stdout for key, outcome in workers.run(jobs)} == {i: f"{i}\n" for i in range(40)}


def test_plain_limits_are_refused_unless_allowed():
    with pytest.raises(InputError, match="allow-unsandboxed"):
        choose_level("rlimits")
    assert choose_level("rlimits", allow_unsandboxed=True) == "rlimits"
    with pytest.raises(InputError, match="no sandbox level"):
        choose_level("docker")


@pytest.mark.parametrize("allow_unsandboxed", [False, True])
def test_a_named_level_is_that_level_or_an_error(monkeypatch, allow_unsandboxed: bool):
    monkeypatch.setenv("PATH", "/nowhere")
    why_not.cache_clear()
    try:
        with pytest.raises(MachineError, match=r"bubblewrap does not work.*\n.*bwrap is not installed"):
            choose_level("bubblewrap", allow_unsandboxed)
    finally:
        why_not.cache_clear()


def test_an_outcome_crosses_the_pipe_unchanged():
    job = python_job("x")
    assert Job.from_json(json.loads(json.dumps(job.as_json()))) == job


def test_a_broken_sandbox_stops_the_run_and_is_no_verdict_on_the_model():
    with Workers(choose_level(), count=1, preload=()) as workers:
        jobs = workers.run([(0, python_job("import time; time.sleep(30)", seconds=40))])
        threading.Timer(1.0, os.kill, (workers.worker_pids()[0], signal.SIGKILL)).start()
        [(_, outcome)] = jobs
    assert PYTHON.toolchain.verdict(outcome, "qtk") == "sandbox_error"
    suite = load_suite("humaneval")
    with Scorer(suite, "python", level=choose_level(), rules="qtk", workers=1) as scorer:
        os.kill(scorer.workers.worker_pids()[0], signal.SIGKILL)
        task = Task("T/0", "python", "def f():\n", "    pass\n", "f()\n", "f")
        with pytest.raises(MachineError, match="not the model's fault"):
            scorer.check_references([task])


def test_landlock_promises_what_the_kernel_holds():
    assert "TCP is not blocked" in landlock_promise(3)
    assert "TCP is not blocked" not in landlock_promise(4)
    assert "signals" in landlock_promise(5)
    assert "signals" not in landlock_promise(6)
    assert "cut short" in landlock_promise(2)
    assert "NO process isolation" in promise("landlock")
