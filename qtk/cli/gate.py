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
    from qtk.cli.tables import Sheet
    from qtk.release.gates import GateReport

GATE_DIRECTORY = "gate"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--gates",
    "gates_file",
    type=click.Path(path_type=Path),
    help="A YAML file with `gates:`, in place of those of the run's recipe.",
)
@output_options(
    f"Directory to write [default: {GATE_DIRECTORY} in the run's directory, where an earlier verdict is replaced].",
    required=False,
)
@json_option
def command(run: Path, gates_file: Path | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Hold RUN, or any directory that holds qtk's output directories, against the gates of its recipe.

    Prints what was measured, the limit, the standard error and the verdict of each gate, and writes result.json, junit.xml
    and summary.md. Exit code 3 when a gate fails, or when what it asks for was not measured. The chain is verified first.
    `qtk list gates` names the metrics.

    \b
    qtk gate runs/codefuse-deepseek-33b-a10
    qtk gate runs/mine --gates release-gates.yaml -o verdict --json
    """
    from qtk.recipes.gating import gates_of, measured_in, write_gate

    gates = gates_of(run, gates_file)
    directories = measured_in(run)
    place = out or run / GATE_DIRECTORY
    report = write_gate(run.resolve().name, gates, directories, place, overwrite=overwrite or out is None)
    tell_github(place)
    emit(report, as_json, lambda console: console.print(gate_table(report)), gate_failure(report), made=place)


def judged(run_dir: Path, recipe: str) -> GateReport | None:
    """The verdict on a run that has just ended; None where its recipe has no gates."""
    from qtk.recipes.finished_run import measured_directories
    from qtk.recipes.gating import RunGates, write_gate
    from qtk.recipes.reading import read_recipe
    from qtk.recipes.schema import RECIPE_COPY

    gates = read_recipe(run_dir / RECIPE_COPY).gates
    if not gates:
        return None
    place = run_dir / GATE_DIRECTORY
    report = write_gate(recipe, RunGates(gates, run_dir), measured_directories(run_dir), place, overwrite=True)
    tell_github(place)
    return report


def gate_table(report: GateReport) -> Sheet:
    """One row a gate."""
    from qtk.release.gate_files import rows

    return table(f"Gates of {report.run}", ("gate", "measured", "± SE", "limit", "verdict"), rows(report))


def gate_failure(report: GateReport) -> GateFailed | None:
    """What is wrong with the run; None when every gate passed."""
    from qtk.release.gate_files import in_words

    if report.passed:
        return None
    return GateFailed(f"{report.run} is not ready:\n{listing(in_words(result) for result in report.failures)}")


def tell_github(place: Path) -> None:
    """Adds the summary to the job's page where GitHub Actions asks for one."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with open(page, "a", encoding="utf-8") as stream:
            stream.write((place / "summary.md").read_text(encoding="utf-8"))
