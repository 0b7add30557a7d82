"""qtk run: a recipe, step after step."""

from __future__ import annotations

from pathlib import Path

import click

from qtk.cli.output import emit, json_option, table
from qtk.errors import InputError
from qtk.recipes.stages import STAGES


@click.command()
@click.argument("recipe")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), help="The run's directory [default: runs/NAME]."
)
@click.option("--resume", is_flag=True, help="Go on with a run: do what is missing or out of date, skip the rest.")
@click.option("--overwrite", is_flag=True, help="Do everything again, in place of what an earlier run left.")
@click.option(
    "--from", "first_stage", type=click.Choice(STAGES), help="Take earlier stages as they are; do again from here."
)
@click.option("--until", "last_stage", type=click.Choice(STAGES), help="Stop after this stage.")
@json_option
def command(
    recipe: str,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    first_stage: str | None,
    last_stage: str | None,
    as_json: bool,
) -> None:
    """Run RECIPE, a YAML file or the name of a recipe that travels with qtk: merge, quantize, build, measure, report.

    A step is done again only when its options, one of its inputs, or qtk's version changed. The stages may run on
    different machines: copy the run's directory to the next one and go on there with --from.

    \b
    qtk run recipes/smollm2-135m.yaml -o runs/smollm2-135m
    qtk run recipes/smollm2-135m.yaml -o runs/smollm2-135m --resume
    qtk run codefuse-deepseek-33b-a10 --until build
    qtk run codefuse-deepseek-33b-a10 --from latency
    """
    from qtk.recipes.recipe_run import Mode, run_recipe
    from qtk.recipes.schema import read_recipe, recipe_path

    if resume and overwrite:
        raise InputError("--resume skips what is done and --overwrite does it again: only one of them can be meant.")
    path = recipe_path(recipe)
    run_dir = out or Path("runs") / read_recipe(path).name
    mode: Mode = "overwrite" if overwrite else "resume" if resume else "new"
    outcome = run_recipe(path, run_dir, mode=mode, first_stage=first_stage, last_stage=last_stage)
    rows = [(step.step, step.status, step.seconds, str(run_dir / step.directory)) for step in outcome.steps]
    emit(
        outcome,
        as_json,
        lambda console: console.print(table(f"Run of {outcome.recipe}", ("step", "", "seconds", "directory"), rows)),
    )
