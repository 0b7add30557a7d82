"""What a command says on stderr: notes, warnings (which are kept for its manifest), and progress.

Progress is a bar with an ETA on a terminal, plain lines elsewhere, nothing for work of under two seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from qtk.redaction import redact
from qtk.wording import printable

_QUIET = False
_WARNINGS: list[str] = []  # of this process, in their order; `warnings_since` reads them


@dataclass(frozen=True)
class Pace:
    """How soon progress is shown, and how often a line is written where there is no terminal. In seconds."""

    silent: float = 2.0
    between_lines: float = 10.0


def silence_progress(quiet: bool = True) -> None:
    """Turns all progress output off (`--quiet`) or on again."""
    global _QUIET
    _QUIET = quiet


def shows_progress() -> Literal["no", "lines", "bars"]:
    """How progress is shown: not at all, as lines in a log, or as bars on a terminal."""
    if _QUIET:
        return "no"
    return "bars" if sys.stderr.isatty() else "lines"


def note(message: str) -> None:
    """One line to stderr: a fact about the run that is not part of its result."""
    if not _QUIET:
        print(printable(redact(message)), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """A line to stderr about what makes the result worse, or less certain, than it looks.

    It is also kept: the command's manifest and its --json take it from `warnings_since`, and the report from the manifest.
    """
    _WARNINGS.append(redact(message))
    note(f"WARNING: {message}")


def forget_warnings() -> None:
    """Begins anew: for a process that runs one command line after another."""
    _WARNINGS.clear()


def warnings_so_far() -> int:
    """How many warnings this process has given: the place from which a command's own are read later."""
    return len(_WARNINGS)


def warnings_since(start: int) -> list[str]:
    """The warnings given after the first `start`, each once."""
    return list(dict.fromkeys(_WARNINGS[start:]))


class Progress:
    """A counted piece of work.

    with Progress("quantize", total=30, unit="blocks") as progress:
        progress.advance(1, "block 3: error 0.012")

    The unit "s" counts seconds, of which `reach` says how many are expected in all.
    """

    def __init__(self, label: str, total: int | None, unit: str = "", pace: Pace | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.pace = pace or Pace()
        self.done = 0
        self._start = time.monotonic()
        self._last_line = self._start
        self._bar: RichProgress | None = None
        self._detail = ""
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        """Starts a timer, so that progress is shown even while a long first unit runs."""
        if not _QUIET:
            pace = self.pace
            wait = pace.silent if sys.stderr.isatty() else max(pace.silent, pace.between_lines)
            self._show_after(max(wait, 0.0))
        return self

    def _show_after(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._show_waiting)
        self._timer.daemon = True
        self._timer.start()

    def _show_waiting(self) -> None:
        """While the first unit runs: in lines, each after twice the time of the one before."""
        self._show()
        with self._lock:
            elapsed = time.monotonic() - self._start
            if not self.done and elapsed > 0 and not sys.stderr.isatty():
                self._show_after(elapsed)

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Records that `count` more units are done. `detail` is shown beside the bar."""
        with self._lock:
            self.done += count
            self._detail = detail or self._detail
        self._show()

    def reach(self, done: float, total: float, detail: str = "") -> None:
        """Records that `done` of `total` units are done, for work whose size is estimated anew as it goes on."""
        with self._lock:
            self.done, self.total = round(done), max(1, round(total))
            self._detail = detail or self._detail
        self._show()

    def _show(self) -> None:
        if _QUIET:
            return
        with self._lock:
            now = time.monotonic()
            if sys.stderr.isatty():
                self._draw(now)
            elif now - self._start > self.pace.silent and now - self._last_line >= self.pace.between_lines:
                self._last_line = now
                self._print_line(now)

    def _draw(self, now: float) -> None:
        if self._bar is None:
            if now - self._start < self.pace.silent:
                return
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            # rich measures speed from the updates it sees: start at 0 so that the first estimate covers the silent seconds.
            self._task = self._bar.add_task(self.label, total=self.total, detail="")
        self._bar.update(self._task, completed=self.done, total=self.total, detail=self._detail)

    def _print_line(self, now: float) -> None:
        elapsed = now - self._start
        if not self.done:
            text = f"{self.label}: {elapsed:.0f} s so far"
        elif self.total and self.unit == "s":
            text = f"{self.label}: {self.done} s, about {self.total - self.done} s left"
        elif self.total:
            left = elapsed / max(self.done, 1) * (self.total - self.done)
            text = f"{self.label}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s, about {left:.0f} s left"
        else:
            unit = self.unit[:-1] if self.done == 1 and len(self.unit) > 1 else self.unit
            text = f"{self.label}: {self.done} {unit}, {elapsed:.0f} s"
        print(f"{text}{'; ' + self._detail if self._detail else ''}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            self._start = self._last_line = float("inf")  # so that a timer that fires just now shows nothing
