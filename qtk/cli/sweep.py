"""qtk sweep: a recipe at every point of a grid of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtk.cli.known_names import completer
from qtk.cli.options import output_options, ray_option, set_option
from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.errors import InputError

if TYPE_CHECKING:
    from qtk.sweeps.ranking import Ranking


@click.command()
@click.argument("recipe", shell_complete=completer("recipes"))
@click.option(
    "--grid",
    "grid",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE",
    help="A setting of the recipe and the values that it takes in turn; a YAML list where values hold commas. Repeatable: all "
    "combinations are run.",
)
@set_option
@output_options("The sweep's directory [default: sweeps/NAME].", required=False, overwrite="Do everything again.")
@click.option("--resume", is_flag=True, help="Continue a sweep: do what is missing or out of date, skip the rest.")
@ray_option("steps")
@json_option
def command(
    recipe: str,
    grid: tuple[str, ...],
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    ray: str | None,
    as_json: bool,
) -> None:
    """Run RECIPE at every point of a grid of its settings, and rank the results.

    Each variant is a run of its own in the sweep's directory. What variants have in common, such as the merge, is done once.
    The ranking names those that no other variant beats in size, divergence and speed at once; it is written into
    ranking/ as JSON, Markdown and a plot. A variant that fails does not stop the others; the exit code is then that of its
    error.

    With --ray, each step is a task that takes a whole node, and is done again where a worker dies. All nodes need
    the same qtk, and the sweep's directory at the same path.

    \b
    qtk sweep release.yaml --grid quantize.method=gptq,awq --grid quantize.group_size=32,64,128
    qtk sweep release.yaml --grid quantize.group_size=64,128 --set bench.divergence.rows=8 -o sweeps/groups
    qtk sweep release.yaml --grid quantize.effort=fast,best --ray auto
    """
    from qtk.recipes.reading import find_recipe, resolve_recipe
    from qtk.recipes.step_work import Mode
    from qtk.sweeps.grid import read_grid
    from qtk.sweeps.ranking import rank
    from qtk.sweeps.ranking_files import SweepOptions, write_ranking
    from qtk.sweeps.step_runner import OneByOne, StepRunner
    from qtk.sweeps.sweep import failures, run_sweep

    if resume and overwrite:
        raise InputError("--resume skips what is done and --overwrite does it again: give only one of them.")
    axes, file = read_grid(grid), find_recipe(recipe)
    name = resolve_recipe(file, settings).recipe.name
    place = out or Path("sweeps") / name

    def runner() -> StepRunner:
        if ray is None:
            return OneByOne()
        from qtk.sweeps.ray_steps import RaySteps

        return RaySteps(ray)

    mode: Mode = "overwrite" if overwrite else "resume" if resume else "new"
    swept = run_sweep(file, axes, place, settings=settings, mode=mode, runner=runner)
    ranking = rank(name, swept)
    asked = SweepOptions(recipe=name, settings=settings, grid={axis.key: axis.values for axis in axes})
    made = write_ranking(ranking, asked, place)
    emit(ranking, as_json, lambda console: _show(ranking, made, console), failures(swept), made=made)


def _show(ranking: Ranking, made: Path, console: ResultConsole) -> None:
    from qtk.sweeps.ranking_files import COLUMNS, ranking_rows

    console.print(table(f"Variants of {ranking.recipe}", COLUMNS, ranking_rows(ranking)))
    console.print(f"The ranking: {made / 'ranking.md'}")
