"""qtk report: the Markdown report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from qtk.cli.output import emit, json_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Where to [default: DIRECTORY/report].")
@click.option("--title", help="The heading [default: DIRECTORY's name].")
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
@json_option
def command(directory: Path, out: Path | None, title: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the report (report.md and its plots) of a run, or of any directory that holds qtk's output directories.

    \b
    qtk report runs/smollm2-135m --overwrite
    qtk report . -o report
    """
    from qtk.recipes.finished_run import is_run, measured_directories
    from qtk.release.report import reportable_directories, write_report

    sources = measured_directories(directory) if is_run(directory) else reportable_directories(directory)
    target = out or directory / "report"
    written = write_report(sources, target, title=title or directory.resolve().name, overwrite=overwrite)
    emit({"report": str(written)}, as_json, lambda console: console.print(str(written)))
