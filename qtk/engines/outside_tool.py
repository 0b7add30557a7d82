"""Locates and runs an external tool. Its full output goes to a log that is kept on failure; it is killed when qtk is
interrupted."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from qtk.errors import MachineError
from qtk.progress import Progress

_TAIL_LINES = 15
_GRACE_SECONDS = 10.0


def find_tool(name: str, directory: Path | None = None) -> str | None:
    """The executable `name` in `directory`, or on PATH without a directory; None when there is none."""
    return shutil.which(name, path=None if directory is None else str(directory))


def tool_help(tool: str) -> str:
    """The text of `TOOL --help`, which says what flags this version knows. MachineError when the tool does not run."""
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
    """Runs `words` inside `directory`, with the tool's output in NAME.log there. Returns that log.

    MachineError when the tool fails or is killed: with its last lines, and the log kept as OUT.NAME.log beside the output
    directory, which itself disappears. When qtk is stopped, the tool is stopped with everything it started.
    """
    name = Path(words[0]).name
    log = directory / f"{name}.log"
    code = run_logged(words, log, directory=directory, environment=environment)
    if code:
        kept = keep_log(log)
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}{_why(-code)}"
        raise MachineError(
            f"{name} failed ({how}). Its log is kept as {kept}; it ends with:\n{_tail(log.read_text(errors='replace'))}"
        )
    return log


def run_logged(
    words: Sequence[str],
    log: Path,
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], bool] | None = None,
) -> int:
    """Runs `words` in a process group of its own, with its output in `log`, and returns its exit code (-N: killed by
    signal N).

    on_line is given each line of stdout; a true answer keeps the line out of the log. Without on_line, the progress on
    stderr counts seconds. MachineError where the tool does not start. When qtk is stopped, the whole group is stopped.
    """
    with log.open("wb", buffering=0) as stream:
        stream.write(f"$ {shlex.join(words)}\n".encode())
        try:
            process = subprocess.Popen(
                list(words),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stream if on_line is None else subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise MachineError(f"{words[0]} does not start: {error.strerror}.") from None
        try:
            if on_line is not None:
                assert process.stdout is not None
                _read_lines(process.stdout, stream, on_line)
            return _wait(process, Path(words[0]).name) if on_line is None else process.wait()
        except BaseException:
            _stop(process)
            raise


def keep_log(log: Path) -> Path:
    """Copies a log out of the output directory, which disappears with the failure, to a file beside it. Returns the copy."""
    directory = log.parent
    kept = directory.parent / f"{directory.name.removesuffix('.partial')}.{log.name}"
    shutil.copyfile(log, kept)
    return kept


def _read_lines(stdout: IO[bytes], log: IO[bytes], on_line: Callable[[str], bool]) -> None:
    for line in stdout:
        if not on_line(line.decode(errors="replace")):
            log.write(line)


def _wait(process: subprocess.Popen[bytes], name: str) -> int:
    with Progress(name, None, "s") as progress:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                progress.advance(1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the tool and everything it started: with SIGTERM, and after a grace period with SIGKILL."""
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
