"""qtk gate: whether what must hold before a release does hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtk.cli.options import output_options
from qtk.cli.output import emit, json_option, table
from qtk.errors import GateFailed, listing

if TYPE_CHECKING:
    from qtk.release.gates import GateReport


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--gates",
    "gates_file",
    type=click.Path(path_type=Path),
    help="A YAML file with `gates:`, in place of those of the run's recipe.",
)
@output_options("Directory to write [default: gate in the run's directory].", required=False)
@json_option
def command(run: Path, gates_file: Path | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Hold RUN, or any directory that holds qtk's output directories, against the gates of its recipe.

    Prints what was measured, the limit, the standard error and the verdict of each gate, and writes result.json, junit.xml
    and summary.md. Exit code 3 when a gate fails, or when what it asks for was not measured. The chain is verified first.

    \b
    qtk gate runs/codefuse-deepseek-33b-a10
    qtk gate runs/mine --gates release-gates.yaml -o verdict --json
    """
    from qtk.recipes.finished_run import is_run, measured_directories
    from qtk.recipes.gating import gates_of, write_gate
    from qtk.release.report import reportable_directories

    gates = gates_of(run, gates_file)
    directories = measured_directories(run) if is_run(run) else reportable_directories(run)
    place = out or run / "gate"
    if place.exists() and not overwrite and out is None:
        overwrite = True  # the verdict of an earlier state of the same run
    report = write_gate(run.resolve().name, gates, directories, place, overwrite=overwrite)
    _tell_github(place)
    show_gates(report, as_json)


def show_gates(report: GateReport, as_json: bool) -> None:
    """Prints the verdicts; GateFailed unless every gate passed."""
    from qtk.release.gate_files import in_words, rows

    failed = GateFailed(f"{report.run} is not ready:\n{listing(in_words(result) for result in report.failures)}")
    columns = ("gate", "measured", "± SE", "limit", "verdict")
    emit(
        report,
        as_json,
        lambda console: console.print(table(f"Gates of {report.run}", columns, rows(report))),
        None if report.passed else failed,
    )


def _tell_github(place: Path) -> None:
    """Adds the summary to the job's page where GitHub Actions asks for one."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with open(page, "a", encoding="utf-8") as stream:
            stream.write((place / "summary.md").read_text(encoding="utf-8"))
