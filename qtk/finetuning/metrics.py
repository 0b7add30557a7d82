"""The course of a training: one JSON object a line, and the same for TensorBoard where that is installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

METRICS_NAME = "metrics.jsonl"
TENSORBOARD = "tensorboard"


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics; a line that a kill left incomplete is passed over. None without the file."""
    path = directory / METRICS_NAME
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


class MetricsLog:
    """Writes metrics into a directory, line after line."""

    def __init__(self, directory: Path, *, step: int) -> None:
        """Goes on after `step`: what an earlier session wrote of later steps is dropped, and will come again."""
        kept = [line for line in read_metrics(directory) if line.get("step", 0) <= step]
        self._file: IO[str] = open(directory / METRICS_NAME, "w", encoding="utf-8")  # noqa: SIM115 - held until `close`
        shutil.rmtree(directory / TENSORBOARD, ignore_errors=True)
        self._board = _board(directory / TENSORBOARD)
        for line in kept:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line: numbers by name, `step` among them, and those of tasks under `tasks`."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _scalars(line):
                self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Ends both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """A file of TensorBoard's events, written as the lines come and with no thread, whose errors nobody would catch. Its name does not
    tell the machine's."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir()
        self._event, self._summary = Event, Summary
        self._records = RecordWriter(open(directory / "events.out.tfevents.0", "wb"))  # noqa: SIM115 - held until `close`
        self._write(file_version="brain.Event:2")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=name, simple_value=value)]))

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _board(directory: Path) -> _Board | None:
    return None if importlib.util.find_spec("tensorboard") is None else _Board(directory)


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    part = "held_back" if "held_back" in line else "train"
    for name, value in line.items():
        if name == "tasks":
            yield from ((f"{task}/{part}", loss) for task, loss in value.items() if loss is not None)
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "seconds"):
            yield f"all/{part if name in ('loss', 'held_back') else name}", value
