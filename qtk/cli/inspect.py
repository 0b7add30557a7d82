"""qtk inspect: what a directory holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.sizes import size_text

if TYPE_CHECKING:
    from qtk.release.inspection import Inspection


_LISTED = {"steps": "steps of", "contains": "outputs in"}  # facts that are rows, and how their table is called


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Say what DIRECTORY holds: a model, an adapter, an engine, a result, a run, or a folder of qtk's outputs.

    \b
    qtk inspect int4
    qtk inspect latency
    qtk inspect runs/smollm2-135m --json
    """
    from qtk.recipes.finished_run import is_run, run_summary
    from qtk.release.inspection import Inspection, inspect_directory

    if is_run(directory):
        facts = run_summary(directory).model_dump(exclude={"kind"})
        inspection = Inspection(directory=str(directory), kind="run", facts=facts)
    else:
        inspection = inspect_directory(directory)
    emit(inspection, as_json, lambda console: _show(inspection, console), made=directory)


def _show(inspection: Inspection, console: ResultConsole) -> None:
    """The facts as one table of two columns, and each list of rows among them as a table of its own."""
    facts = dict(inspection.facts)
    figures = facts.pop("figures", [])
    listed = {title: facts.pop(name) for name, title in _LISTED.items() if name in facts}
    rows = [(_label(name), _text(name, value)) for name, value in [*facts.items(), *inspection.made_by.items()]]
    if rows:
        console.print(table(f"{inspection.kind}: {inspection.directory}", ("", ""), [row for row in rows if row[1]]))
    for title, entries in listed.items():
        columns = list(entries[0]) if entries else []
        lines = [[_cell(key, entry[key]) for key in columns] for entry in entries]
        console.print(table(f"{title} {inspection.directory}", [_label(key) for key in columns], lines))
    for figure in figures:
        console.print(table(figure["title"], figure["columns"], figure["rows"]))


def _label(name: str) -> str:
    """ "peak_memory_bytes" -> "peak memory", "bytes" -> "size": the value is printed with its unit."""
    words = name.replace("_", " ")
    return "size" if words == "bytes" else words.removesuffix(" bytes")


def _cell(name: str, value: Any) -> object:
    return size_text(value) if name.endswith("bytes") else value


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return size_text(value) if name.endswith("bytes") else f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, Mapping):
        if name == "files":
            return "\n".join(f"{file}: {size_text(size)}" for file, size in value.items())
        return ", ".join(f"{_label(key)} {_inner(key, inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return "\n".join(_inner(name, inner) for inner in value)
    return "none" if value is None and name == "quantization" else str(value or "")


def _inner(name: str, value: Any) -> str:
    """A value inside of another one, on one line."""
    if isinstance(value, Mapping) and name == "inputs":
        return f"{value['role']}: {value['path']}"
    if isinstance(value, list | tuple):
        return "; ".join(_inner(name, inner) for inner in value)
    return _text(name, value)
