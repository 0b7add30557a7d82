"""Runs another project's command: found or not, its whole output in a log that outlives a failure, stopped when we are."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qtk.errors import MachineError
from qtk.progress import Progress

_TAIL_LINES = 15
_GRACE_SECONDS = 10.0


def find_tool(name: str, directory: Path | None = None) -> str | None:
    """The executable `name` in `directory`, or on PATH where none is given; None when it is not there."""
    return shutil.which(name, path=None if directory is None else str(directory))


def tool_help(tool: str) -> str:
    """What `TOOL --help` prints: which flags this version knows. MachineError when it does not even do that."""
    try:
        answer = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=300, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{tool} --help does not run: {error}") from None
    if answer.returncode:
        raise MachineError(
            f"{tool} --help fails (exit code {answer.returncode}):\n{_tail(answer.stdout + answer.stderr)}"
        )
    return answer.stdout + answer.stderr


def run_tool(words: Sequence[str], directory: Path, *, environment: Mapping[str, str] | None = None) -> Path:
    """Runs `words` inside `directory`, its output in NAME.log there, and returns that log.

    MachineError when it fails or is killed: with its last lines, the log kept as OUT.NAME.log beside the output directory,
    which itself disappears. When we are stopped, so is the tool with everything it started.
    """
    name = Path(words[0]).name
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        stream.write(f"$ {shlex.join(words)}\n".encode())
        stream.flush()
        try:
            process = subprocess.Popen(
                list(words),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise MachineError(f"{words[0]} does not start: {error.strerror}.") from None
        try:
            code = _wait(process, name)
        except BaseException:
            _stop(process)
            raise
    if code:
        kept = keep_log(log)
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}{_why(-code)}"
        raise MachineError(
            f"{name} failed ({how}). Its log is kept as {kept}; it ends with:\n{_tail(log.read_text(errors='replace'))}"
        )
    return log


def keep_log(log: Path) -> Path:
    """A copy of a log in the directory being written, beside it, since that directory disappears with the failure."""
    directory = log.parent
    kept = directory.parent / f"{directory.name.removesuffix('.partial')}.{log.name}"
    shutil.copyfile(log, kept)
    return kept


def _wait(process: subprocess.Popen[bytes], name: str) -> int:
    with Progress(name, None, "s") as progress:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                progress.advance(1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the tool and what it started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _why(number: int) -> str:
    return ", as the system does when memory runs out" if number == signal.SIGKILL else ""


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-_TAIL_LINES:])
