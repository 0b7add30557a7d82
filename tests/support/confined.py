"""Runs commands each in a process of its own with limits of time and memory, which is forked from one that has imported all."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS, MEGABYTES = 20.0, 1024
_IMPORTED = (
    "torch",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "jinja2",
    "rich.table",
    "rich.markup",
    "gguf",
    "scipy",
    "numpy.testing",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: 124 where its time was up, 128 + the number of a signal that ended it. peak: the most memory
    that was resident, in bytes, what was imported included. survivors: processes of it that went on for seconds after its end."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int
    survivors: list[str]

    @property
    def said(self) -> str:
        return self.err + self.out

    @property
    def clean(self) -> bool:
        """Whether it was done, or refused with a sentence and the right kind of exit code."""
        told = self.code == 0 or "qtk: " in self.err or "Error: " in self.err
        return self.code in (0, 2, 3, 4) and told and "Traceback" not in self.said and "a bug:" not in self.said


class Confined:
    """`run("merge", ...)` runs a command in a fork of a process that has imported everything: some milliseconds each."""

    def __init__(self, preload: Path | None = None) -> None:
        """preload: a library whose functions take the place of the C library's."""
        environment = {**os.environ, **({"LD_PRELOAD": str(preload)} if preload else {})}
        # -u: what is asked and answered must not wait in a buffer.
        self._server = subprocess.Popen(
            [sys.executable, "-u", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        *words: object,
        cwd: Path | None = None,
        seconds: float = SECONDS,
        megabytes: int = MEGABYTES,
        env: Mapping[str, str] = {},
        unprivileged: bool = False,
        alone: bool = False,
    ) -> Outcome:
        """Runs a command. seconds: after which it is killed. env: what is set for it beside what this process has. unprivileged:
        the permissions of files hold for it, be it root. alone: what it has started is not killed with it."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd or "."),
            "seconds": seconds,
            "env": dict(env),
            "unprivileged": unprivileged,
            "alone": alone,
        }
        self._server.stdin.write(json.dumps({**request, "bytes": megabytes << 20}) + "\n")
        self._server.stdin.flush()
        return Outcome(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=120)


def limited_fork(
    work: Callable[[], int], *, seconds: float, more_bytes: int, alone: bool = False
) -> tuple[int, float, int]:
    """Does `work` in a forked process that may take `more_bytes` of address space beyond what this one has. Returns its exit code,
    the seconds that it took, and its peak memory in bytes. After `seconds` it is killed, with what it has started unless `alone`."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + more_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            code = work()
        finally:
            os._exit(code)
    end = os.kill if alone else os.killpg

    def kill(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            end(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        _, status, usage = os.wait4(child, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        code = 124 if code == -signal.SIGKILL and took >= seconds else 128 - code
    return code, took, usage.ru_maxrss << 10


def _answer(request: dict[str, object]) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:

        def work() -> int:
            from qtk.cli.main import main

            os.environ.update(request["env"])  # type: ignore[call-overload]
            os.chdir(str(request["cwd"]))
            if request["unprivileged"]:
                _give_up_capabilities()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            try:
                code = main([str(word) for word in request["words"]])  # type: ignore[attr-defined]
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 70
            sys.stdout.flush()
            sys.stderr.flush()
            return code

        code, took, peak = limited_fork(
            work,
            seconds=float(request["seconds"]),  # type: ignore[arg-type]
            more_bytes=int(request["bytes"]),  # type: ignore[call-overload]
            alone=bool(request["alone"]),
        )
        survivors = _survivors()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return {"code": code, "out": texts[0], "err": texts[1], "seconds": took, "peak": peak, "survivors": survivors}


def _survivors(seconds: float = 5) -> list[str]:
    """The command lines of the processes that a command left behind and that do not end by themselves; they are killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
            continue
        return []
    children = Path("/proc/thread-self/children").read_text().split()
    lines = [Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in children]
    for child in children:
        os.kill(int(child), signal.SIGKILL)
        os.waitpid(int(child), 0)
    return lines


def _give_up_capabilities() -> None:
    """Root keeps its name, so that it reaches its own Python, and nothing else of what sets it apart (capset(2))."""
    version_3, own_process = 0x20080522, 0
    header, none = (ctypes.c_uint32 * 2)(version_3, own_process), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _adopt_orphans() -> None:
    """The processes of commands that are gone become this one's children."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _serve() -> None:
    import importlib
    import pkgutil

    import qtk

    # All of qtk, so that no case spends its time with importing; what needs a package that is not here is left out.
    own = [
        module.name for module in pkgutil.walk_packages(qtk.__path__, "qtk.") if not module.name.endswith("__main__")
    ]
    for name in (*_IMPORTED, *own):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    _adopt_orphans()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


@pytest.fixture(scope="session")
def confined() -> Iterator[Confined]:
    server = Confined()
    yield server
    server.close()


if __name__ == "__main__":
    _serve()


def refused(outcome: Outcome, out: Path, *phrases: str, code: int = 2) -> None:
    """A command ended with this code and a sentence that holds the phrases, and wrote nothing."""
    assert outcome.clean, outcome.said
    assert outcome.code == code, outcome.said
    for phrase in phrases:
        assert phrase in outcome.said
    assert not out.exists()
