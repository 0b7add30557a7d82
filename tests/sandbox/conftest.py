"""A pool of one worker at every level that works on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.hostile_jobs import LEVELS

from qtk.sandbox.pool import Workers, why_not


@pytest.fixture(scope="module", params=LEVELS)
def workers(request: pytest.FixtureRequest):
    if reason := why_not(request.param):
        pytest.skip(f"{request.param}: {reason}")
    os.environ["QTK_TEST_SECRET"] = "do-not-tell"
    with Workers(request.param, count=1, preload=("random",)) as pool:
        yield pool
        scratch, [worker] = pool.scratch_directories(), pool.worker_pids()
    del os.environ["QTK_TEST_SECRET"]
    # After all the hostile programs: neither a directory nor a control group of theirs.
    assert [path for path in scratch if os.path.exists(path)] == []
    assert list(Path("/sys/fs/cgroup").glob(f"*/qtk-{worker}")) == []
