"""Runs the programs that files hold, chat templates and regular expressions, in a process with limits of time and memory."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from qtk.errors import InputError, MachineError

SECONDS = 1.0  # of processor time for one template or expression; each takes less than a millisecond
MEGABYTES = 512
_LONGEST = (
    1_000_000  # characters that a template may add to a conversation, and as many again for each character of it: 20
)
_GROWTH = 20
_CHOICES = re.compile(r"(?<!\\)[*+?{|]")  # a pattern without these is tried in one way only, whatever the text is
_LONGEST_PATTERN = 10_000


class TooMuch(Exception):
    """A program that takes more time or memory than it may."""


class ProgramFailed(Exception):
    """An error inside a program. kind: the name of Python's class. refused: the template itself said no."""

    def __init__(self, kind: str, said: str, *, refused: bool, line: int | None) -> None:
        super().__init__(said)
        self.kind, self.said, self.refused, self.line = kind, said, refused, line


class _Worker:
    """The process, started when it is first asked, and again after one of its limits ended it. Thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request. TooMuch, ProgramFailed; MachineError where the process was ended from outside."""
        with self._lock:
            answer = self._exchange(json.dumps(request))
        if "error" not in answer:
            return answer
        if answer["error"] == "MemoryError":
            raise TooMuch(f"it takes more than {MEGABYTES} MB of memory")
        raise ProgramFailed(answer["error"], answer["said"], refused=bool(answer["refused"]), line=answer.get("line"))

    def _exchange(self, line: str) -> dict[str, Any]:
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            if answer := process.stdout.readline():
                return dict(json.loads(answer))
        except BrokenPipeError:
            pass
        except BaseException:  # interrupted between a question and its answer: the next would get this one's
            self._end()
            raise
        code = process.wait()
        self._end()
        if code == -signal.SIGPROF:
            raise TooMuch("it takes more than a second")
        if code in (1, -signal.SIGSEGV):  # out of memory where Python cannot say so any more; out of stack
            raise TooMuch(f"it takes more than {MEGABYTES} MB of memory")
        raise MachineError(
            f"The process that runs templates and regular expressions has ended (exit code {code}). Run again."
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        process.kill()
        process.wait()

    def close(self) -> None:
        with self._lock:
            self._end()


def _started() -> subprocess.Popen[str]:
    words = [sys.executable, str(Path(__file__).with_name("worker.py")), str(MEGABYTES << 20), str(SECONDS)]
    paths = [path for path in sys.path if path and not path.startswith(str(Path(__file__).parent))]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUTF8": "1",
        "PYTHONSAFEPATH": "1",
        "TZ": os.environ.get("TZ", ""),
    }
    if not environment["TZ"]:
        del environment["TZ"]
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
    )


_worker = _Worker()
atexit.register(_worker.close)


def check_template(template: str) -> None:
    """TooMuch or ProgramFailed for a template that does not compile."""
    _worker.ask(kind="check", template=template)


def render_template(template: str, values: dict[str, Any]) -> str:
    """A chat template with values put in. TooMuch, ProgramFailed."""
    size = sum(len(message["content"]) for message in values.get("messages", ()))
    longest = _LONGEST + _GROWTH * size
    return str(_worker.ask(kind="render", template=template, values=values, longest=longest)["text"])


def require_pattern(pattern: str) -> None:
    """InputError for what is not a regular expression."""
    try:
        if len(pattern) > _LONGEST_PATTERN:
            raise OverflowError(f"it has {len(pattern)} characters")
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{_short(pattern)} is not a regular expression that can be used: {error}") from None


@functools.lru_cache(maxsize=65536)
def groups_matched(pattern: str, text: str, form: str = "{}") -> tuple[str | None, ...] | None:
    """What a regular expression of a file matches at the start of `text`, and its groups; None where it does not match.

    form: the expression around it, where {} stands for it. InputError for one that is malformed, or takes too long.
    """
    require_pattern(pattern)
    around = form.format(pattern)
    try:
        if not _CHOICES.search(pattern):
            found = re.match(around, text)
            return None if found is None else (found[0], *found.groups())
        groups = _worker.ask(kind="match", pattern=around, text=text)["groups"]
    except TooMuch as error:
        raise InputError(
            f"The regular expression {_short(pattern)} cannot be used on {_short(text)}: {error}."
        ) from None
    except (ProgramFailed, re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{_short(pattern)} is not a regular expression that can be used: {error}") from None
    return None if groups is None else tuple(groups)


def matches(pattern: str, text: str, form: str = "{}") -> bool:
    """Whether a regular expression of a file matches, as `groups_matched` does."""
    return groups_matched(pattern, text, form) is not None


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
