"""qtk run: a recipe, step after step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtk.cli.gate import gate_failure, gate_table, judged
from qtk.cli.known_names import completer
from qtk.cli.next_step import after_run
from qtk.cli.options import output_options, set_option
from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.errors import InputError
from qtk.recipes.stages import STAGES

if TYPE_CHECKING:
    from qtk.recipes.reading import ResolvedRecipe
    from qtk.recipes.step_work import Mode


@click.command()
@click.argument("recipe", shell_complete=completer("recipes"))
@set_option
@output_options(
    "The run's directory [default: runs/NAME].",
    required=False,
    overwrite="Do everything again; each output is replaced once its successor is complete.",
)
@click.option("--resume", is_flag=True, help="Continue a run: do what is missing or out of date, skip the rest.")
@click.option(
    "--from", "first_stage", type=click.Choice(STAGES), help="Take earlier stages as they are; redo from here on."
)
@click.option("--until", "last_stage", type=click.Choice(STAGES), help="Stop after this stage.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Do nothing but say what would be done, why, in what time, with what memory and disk, and what this machine lacks.",
)
@json_option
def command(
    recipe: str,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    first_stage: str | None,
    last_stage: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run RECIPE, a YAML file or the name of a recipe that travels with qtk: merge, quantize, build, measure, report.

    A step is done again only when its options or one of its inputs changed, or when a new qtk does that stage otherwise;
    stderr says why. Stages may run on different machines: copy the run's directory to the next machine and continue there with --from.

    A run ends with its report, a page that is opened in a browser. A recipe with `gates` ends with their verdict: exit code 3
    unless all of them pass.

    --dry-run changes nothing on the disk; exit code 4 when the machine lacks something that the run needs.

    Relative paths in a recipe begin where its file lies; in one that travels with qtk, in the current directory.

    \b
    qtk run smollm2-135m
    qtk run smollm2-135m --resume
    qtk run my-recipe.yaml --dry-run
    qtk run my-recipe.yaml -o runs/mine
    qtk run my-recipe.yaml --set quantize.bits=8 --set build.gpu=l4
    qtk run codefuse-deepseek-33b-a10 --until build
    qtk run codefuse-deepseek-33b-a10 --from latency
    """
    from qtk.recipes.finished_run import report_page
    from qtk.recipes.reading import find_recipe, resolve_recipe
    from qtk.recipes.recipe_run import run_recipe

    if resume and overwrite:
        raise InputError("--resume skips what is done and --overwrite does it again: give only one of them.")
    resolved = resolve_recipe(find_recipe(recipe), settings)
    run_dir = out or Path("runs") / resolved.recipe.name
    mode: Mode = "overwrite" if overwrite else "resume" if resume else "new"
    if dry_run:
        _say_what_would_be_done(resolved, run_dir, mode, first_stage, last_stage, as_json=as_json)
        return
    outcome = run_recipe(resolved, run_dir, mode=mode, first_stage=first_stage, last_stage=last_stage)
    complete = last_stage in (None, STAGES[-1])
    gate = judged(run_dir, outcome.recipe) if complete else None
    page = report_page(run_dir) if complete else None
    rows = [(step.step, step.status, step.seconds, str(run_dir / step.directory)) for step in outcome.steps]

    def show(console: ResultConsole) -> None:
        console.print(table(f"Run of {outcome.recipe}", ("step", "", "seconds", "directory"), rows))
        if gate is not None:
            console.print(gate_table(gate))
        if page is not None:
            console.print(f"The report: {page}")
        console.print_command("Next", after_run(run_dir, recipe, complete=complete))

    data = outcome.model_dump(mode="json") | {
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "page": None if page is None else str(page),
    }
    emit(data, as_json, show, None if gate is None else gate_failure(gate))


def _say_what_would_be_done(
    resolved: ResolvedRecipe,
    run_dir: Path,
    mode: Mode,
    first_stage: str | None,
    last_stage: str | None,
    *,
    as_json: bool,
) -> None:
    from qtk.cli.run_plan import show_dry_run
    from qtk.recipes.dry_run import dry_run

    found = dry_run(resolved, run_dir, mode=mode, first_stage=first_stage, last_stage=last_stage)
    emit(found, as_json, lambda console: show_dry_run(console, found), found.shortage)
