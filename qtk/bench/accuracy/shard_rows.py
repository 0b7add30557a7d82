"""The lines of finished work, dealt out to shards and gathered from them, and the order in which a complete run has them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.jsonl import chain_of, complete_rows, write_row
from qtk.bench.accuracy.measures.measure import Loaded

_SHARDS = "shards"
_NEW = ".ordered"
Row = Mapping[str, Any]


def shard_directory(partial: Path, number: int) -> Path:
    """Where shard `number` works."""
    return partial / _SHARDS / str(number)


def row_files(partial: Path) -> dict[str, list[Path]]:
    """Name of a file of lines -> where such a file lies: in the directory, and in those of its shards."""
    found: dict[str, list[Path]] = {}
    for path in (*sorted(partial.glob("*.jsonl")), *sorted(partial.glob(f"{_SHARDS}/*/*.jsonl"))):
        found.setdefault(path.name, []).append(path)
    return found


def deal(partial: Path, directory: Path, parts: Iterable[Loaded]) -> None:
    """Makes a shard's directory, with the lines that the run has already of the tasks of these parts. Errors as of
    `complete_rows`."""
    directory.mkdir(parents=True)
    own = _places(parts)
    for file in sorted(partial.glob("*.jsonl")):
        _append(directory / file.name, (row for row in complete_rows(file) if _key(row) in own))


def gather(partial: Path) -> None:
    """Brings the lines of all shards into the run's own files, each once, and removes the shards. What was stopped in the
    middle of it is done again. Errors as of `complete_rows`."""
    for name, paths in row_files(partial).items():
        known = {_text(row) for row in complete_rows(partial / name)}
        for path in paths:
            new = [row for row in complete_rows(path) if _text(row) not in known]
            _append(partial / name, new)
            known.update(map(_text, new))
    shutil.rmtree(partial / _SHARDS, ignore_errors=True)


def put_in_order(partial: Path, parts: Sequence[Loaded]) -> None:
    """Sorts the lines of every file as the suites have their tasks: the same whatever was done first, and where."""
    places = _places(parts)
    last = (len(parts), 0)

    def place(row: Row) -> tuple[object, ...]:
        part, task = places.get(_key(row), last)
        return part, str(row.get("task", "")), str(row.get("mode", "")), task, row.get("sample", 0)

    for file in sorted(partial.glob("*.jsonl")):
        rows = complete_rows(file)
        ordered = sorted(rows, key=place)
        if ordered == rows:
            continue
        new = file.with_name(file.name + _NEW)
        for left in (new, chain_of(new)):
            left.unlink(missing_ok=True)
        _append(new, ordered)
        os.replace(chain_of(new), chain_of(file))
        os.replace(new, file)


def _append(file: Path, rows: Iterable[Row]) -> None:
    with open(file, "a", encoding="utf-8") as stream:
        for row in rows:
            write_row(stream, row)


def _text(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def _places(parts: Iterable[Loaded]) -> dict[tuple[object, ...], tuple[int, int]]:
    """What a line says of its task -> the number of the part and of the task. A part that is one piece of work has the lines
    that name it as their task."""
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    for number, data in enumerate(parts):
        suite, name = data.part.suite.name, data.part.name
        found |= {(suite, name, task): (number, place) for place, task in enumerate(data.task_ids)}
        if not data.task_ids:
            found[None, name, None] = (number, 0)
    return found


def _key(row: Row) -> tuple[object, ...]:
    part = next((row[name] for name in ("language", "set", "task") if name in row), None)
    return row.get("suite"), part, row.get("task_id")
