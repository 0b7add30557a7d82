"""One result to stdout: a table for people, or one JSON object with --json. Everything else goes to stderr.

Every JSON object begins with the same keys (`envelope`); the command's own follow. docs/json.md describes them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console

import qtk
from qtk.cli.tables import table
from qtk.errors import QtkError
from qtk.progress import warnings_since

__all__ = ["emit", "emit_error", "json_option", "table"]

# Of the keys in the JSON and their meaning. It grows when a key goes or changes its meaning, not when one is added.
SCHEMA_VERSION = 1
_UNLIMITED = 1_000_000

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


class ResultConsole(Console):
    """A console on stdout as wide as the terminal, or as COLUMNS says. A pipe or a file has no width: each row of a table
    stays one line there, so that the output can be searched. Text is wrapped between words only."""

    def __init__(self) -> None:
        width = (
            None if sys.stdout is not None and sys.stdout.isatty() else _number(os.environ.get("COLUMNS")) or _UNLIMITED
        )
        super().__init__(soft_wrap=True, highlight=False, markup=False, width=width)

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*(self._wrapped(it) if isinstance(it, str) else it for it in objects), **settings)

    def _wrapped(self, text: str) -> str:
        if self.width >= _UNLIMITED:
            return text
        lines = (
            textwrap.fill(line, self.width, break_long_words=False, break_on_hyphens=False)
            for line in text.splitlines()
        )
        return "\n".join(lines)

    def print_command(self, label: str, words: Sequence[str]) -> None:
        """A command to copy, which is never wrapped here: "Next: qtk verify int4"."""
        super().print(f"{label}: {shlex.join(words)}")

    def on_broken_pipe(self) -> None:
        """Leaves a closed pipe to `main`; rich would end the command as a failure."""
        raise


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def emit(
    result: BaseModel | Mapping[str, Any],
    as_json: bool,
    show: Callable[[ResultConsole], None],
    failed: QtkError | None = None,
    *,
    made: Path | None = None,
) -> None:
    """Prints `result` as JSON, with the command's warnings, or calls `show` with a console on stdout; then raises `failed`,
    the check that did not pass, or what could not be done.

    It is decided before anything is printed, so that its exit code does not depend on whether somebody reads.
    made: the directory that the command wrote; people are then told the command that usually comes next.
    """
    try:
        if as_json:
            _print_result(result)
        else:
            _show(show, made)
        print(end="", flush=True)
    except BrokenPipeError:
        if failed is None:
            raise
    if failed is not None:
        raise failed


def _print_result(result: BaseModel | Mapping[str, Any]) -> None:
    data = result.model_dump(mode="json") if isinstance(result, BaseModel) else dict(result)
    context = click.get_current_context()
    if isinstance(context.obj, list):
        context.obj.append(data)  # so that an error after this is not a second object
    warnings = list(dict.fromkeys([*data.get("warnings", ()), *warnings_since(0)]))
    _print_json(envelope(context.command_path.partition(" ")[2]) | data | {"warnings": warnings})


def _show(show: Callable[[ResultConsole], None], made: Path | None) -> None:
    console = ResultConsole()
    show(console)
    if made is not None:
        from qtk.cli.next_step import next_step

        if words := next_step(made):
            console.print_command("Next", words)


def emit_error(message: str, exit_code: int, command: str) -> None:
    """Prints what went wrong as the JSON object of `command` ("bench compare")."""
    _print_json(envelope(command) | {"error": message, "exit_code": exit_code})


def envelope(command: str) -> dict[str, Any]:
    """The first keys of every JSON object: the version of the interface, qtk's own, this machine, and the command."""
    from qtk.machine import machine

    return {
        "schema_version": SCHEMA_VERSION,
        "qtk_version": qtk.__version__,
        "machine": machine().as_dict(),
        "command": command,
    }


def _print_json(data: Mapping[str, Any]) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))
