"""One result to stdout: a table for people, or one JSON object with --json. Everything else goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from qtk.errors import GateFailed
from qtk.progress import warnings_since

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


class _Console(Console):
    """Leaves a closed pipe to `main`; rich would end the command as a failure."""

    def on_broken_pipe(self) -> None:
        raise


def emit(
    result: BaseModel | Mapping[str, Any],
    as_json: bool,
    show: Callable[[Console], None],
    failed: GateFailed | None = None,
) -> None:
    """Prints `result` as JSON, with the command's warnings, or calls `show` with a console on stdout; then raises `failed`,
    the check that did not pass.

    A check is decided before anything is printed, so that its exit code does not depend on whether somebody reads.
    """
    try:
        _print(result, as_json, show)
        print(end="", flush=True)
    except BrokenPipeError:
        if failed is None:
            raise
    if failed is not None:
        raise failed


def _print(result: BaseModel | Mapping[str, Any], as_json: bool, show: Callable[[Console], None]) -> None:
    if as_json:
        data = result.model_dump(mode="json") if isinstance(result, BaseModel) else dict(result)
        data["warnings"] = warnings_since(0)
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        # A pipe or a file has no width: each row stays one line there, so that the output can be searched.
        wide = None if sys.stdout is not None and sys.stdout.isatty() else 240
        show(_Console(soft_wrap=True, highlight=False, markup=False, width=wide))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A rich table; numbers are aligned right, None becomes a dash."""
    result = Table(title=title, title_justify="left", header_style="bold", show_header=any(columns))
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*("-" if cell is None else _text(cell) for cell in row))
    return result


def _text(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:.0f}"
