"""qtk report: the report of a run, as a page and in Markdown."""

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
@click.option(
    "--gates",
    "gates_file",
    type=click.Path(path_type=Path),
    help="A YAML file with `gates:` for the verdict, in place of those of the run's recipe.",
)
@json_option
def command(
    run: Path,
    out: Path | None,
    title: str | None,
    before: str | None,
    gates_file: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the report of RUN, or of any directory that holds qtk's output directories: report.html, the same as report.md,
    and its charts as SVG files.

    The page needs nothing else: it can be mailed. It begins with the verdict of the gates and five numbers. `qtk gate` decides
    (exit code 3): it checks every file on the way to the base model, the report only those of RUN.

    \b
    qtk report runs/smollm2-135m --overwrite
    qtk report . -o report
    qtk report . --before scores-float --gates release-gates.yaml
    """
    from qtk.recipes.finished_run import is_run, measured_directories
    from qtk.recipes.gating import gates_if_any, judge_of
    from qtk.release.material import reportable_directories
    from qtk.release.page import PAGE_NAME
    from qtk.release.report import write_report

    name = run.resolve().name
    judge = judge_of(name, gates_if_any(run, gates_file))
    sources = measured_directories(run) if is_run(run) else reportable_directories(run)
    written = write_report(
        sources, out or run / "report", title=title or name, before=before, judge=judge, overwrite=overwrite
    )
    page = written.with_name(PAGE_NAME)
    emit({"report": str(written), "page": str(page)}, as_json, lambda console: console.print(str(page)))
