"""Runs the command line: in the test's own process, or in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def run_qtk(monkeypatch):
    """run_qtk("merge", ...) -> CompletedProcess: what the command printed and its exit code.

    The command runs in this process, which saves the seconds that importing torch takes. `fresh=True` runs it in a process
    of its own: for what happens at import, at the exit, or under another environment that is read only once.
    """

    def run(
        *words: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 240,
        fresh: bool = False,
    ):
        arguments = [str(word) for word in words]
        if fresh:
            command = [sys.executable, "-m", "qtk", *arguments]
            environment = {**os.environ, **(env or {})}
            return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            return run_in_process(arguments)

    return run


def run_in_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process, and puts back what a command sets for its process as a whole."""
    from qtk.cli.main import main
    from qtk.machine import gpus
    from qtk.progress import forget_warnings, silence_progress

    threads, terminate = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    forget_warnings()
    gpus.cache_clear()  # PATH decides which driver answers
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, terminate)
        silence_progress(False)
        gpus.cache_clear()
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, printed, said)
