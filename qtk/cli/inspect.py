"""qtk inspect: what a directory holds."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from qtk.cli.output import emit, json_option, table


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Say what DIRECTORY holds: a model, an adapter, an engine, a run, or another output of qtk.

    \b
    qtk inspect int4
    qtk inspect runs/smollm2-135m --json
    """
    from qtk.recipes.finished_run import is_run, run_summary

    if is_run(directory):
        summary = run_summary(directory)
        rows = [(s.step, s.stage, s.status, s.seconds, s.bytes) for s in summary.steps]
        columns = ("step", "stage", "", "seconds", "bytes")
        emit(
            summary,
            as_json,
            lambda console: console.print(table(f"Run of {summary.recipe} in {directory}", columns, rows)),
        )
        return
    from qtk.release.inspection import inspect_directory

    inspection = inspect_directory(directory)

    def show(console: Console) -> None:
        facts = [(name, _text(name, value)) for name, value in inspection.facts.items()]
        made_by = [(name, _text(name, value)) for name, value in inspection.made_by.items()]
        console.print(table(f"{inspection.kind}: {directory}", ("", ""), [*facts, *made_by]))

    emit(inspection, as_json, show)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and "bytes" in name:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
