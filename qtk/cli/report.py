"""qtk report: the Markdown report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from qtk.cli.options import output_options
from qtk.cli.output import emit, json_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@output_options("Directory to write [default: report in the run's directory].", required=False)
@click.option("--title", help="The heading [default: the name of the run's directory].")
@click.option(
    "--before",
    metavar="NAME",
    help="Directory of the accuracy result that the others are compared with [default: the one of the model that was "
    "quantized, as the manifests tell].",
)
@json_option
def command(run: Path, out: Path | None, title: str | None, before: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the report (report.md and its plots) of RUN, or of any directory that holds qtk's output directories.

    \b
    qtk report runs/smollm2-135m --overwrite
    qtk report . -o report
    qtk report . --before scores-float
    """
    from qtk.recipes.finished_run import is_run, measured_directories
    from qtk.release.report import reportable_directories, write_report

    sources = measured_directories(run) if is_run(run) else reportable_directories(run)
    written = write_report(
        sources, out or run / "report", title=title or run.resolve().name, before=before, overwrite=overwrite
    )
    emit({"report": str(written)}, as_json, lambda console: console.print(str(written)))
