"""Runs a recipe: step after step, each into a directory of its own, skipping what is up to date."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.checkpoint.atomic import unfinished_files, write_atomic
from qtk.checkpoint.directory_lock import held_directory
from qtk.errors import InputError, QtkError
from qtk.progress import note
from qtk.recipes.gating import require_baselines
from qtk.recipes.reading import RecipeFile, ResolvedRecipe, resolve_recipe
from qtk.recipes.recipe_text import recipe_yaml
from qtk.recipes.schema import RECIPE_COPY, Recipe
from qtk.recipes.stages import STAGES
from qtk.recipes.state import RUN_NAME, RunState
from qtk.recipes.step_work import Mode, RecipeSources, Status, StepWork
from qtk.recipes.steps import RecipeStep, recipe_steps
from qtk.redaction import redact


class StepOutcome(BaseModel):
    """What was done about a step. seconds: of its work, whenever that was done. why: it was done, None where it was not."""

    model_config = ConfigDict(frozen=True)
    step: str
    stage: str
    directory: str
    status: Status
    seconds: float
    why: str | None = None


class RunOutcome(BaseModel):
    """The result of `qtk run`: its directory, and every step that was reached."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    directory: str
    steps: tuple[StepOutcome, ...]


def run_recipe(
    resolved: ResolvedRecipe | RecipeFile | Path,
    run_dir: Path,
    *,
    mode: Mode = "new",
    first_stage: str | None = None,
    last_stage: str | None = None,
) -> RunOutcome:
    """Runs a recipe into `run_dir`: one that is resolved already, or in a file, beside which its relative paths begin.

    mode "new" refuses a directory where a run was begun; "resume" does what is missing or out of date (its options or an
    input changed, or qtk does that stage otherwise now), and says why; "overwrite" does everything again. With
    `first_stage`, the stages before it are taken as they are (they may come from another machine), and from it on
    everything is done again; an unfinished step is continued by "resume" there too. Every step's directory is replaced
    only when its successor is complete. A failing step's error names the step. What the recipe names and the machine lacks
    is found before anything is written. InputError while another command works in `run_dir`.
    """
    if not isinstance(resolved, ResolvedRecipe):
        resolved = resolve_recipe(resolved)
    recipe, directory = resolved.recipe, resolved.file.directory
    steps = recipe_steps(recipe, directory)
    require_stages(steps, first_stage, last_stage)
    require_baselines(recipe.gates, directory)
    reached = [step for step in steps if last_stage is None or stage_order(step.stage) <= stage_order(last_stage)]
    with held_directory(run_dir):
        state = earlier_state(run_dir, recipe, mode, first_stage)
        sources = RecipeSources(recipe, directory, state)
        taken = [
            step for step in reached if first_stage is not None and stage_order(step.stage) < stage_order(first_stage)
        ]
        require_for([step for step in reached if step not in taken], sources, run_dir, state)
        state.keep_steps(step.name for step in steps)
        begin_run(run_dir, resolved, state)
        run = StepWork(run_dir, state, sources)
        outcomes: list[StepOutcome] = []
        for number, step in enumerate(reached, start=1):
            label = f"[{number}/{len(reached)}] {step.name}"
            try:
                why: str | None = None
                if step in taken:
                    status = run.take(step)
                elif first_stage is not None or mode == "overwrite":
                    why = "it was asked for"
                    note(label)
                    status = run.do(step, mode)
                elif why := run.out_of_date(step):
                    note(f"{label}{_again(state, step, why)}")
                    status = run.do(step, mode)
                else:
                    note(f"{label}: up to date")
                    status = "up to date"
            except QtkError as error:
                raise type(error)(f"Step {step.name} of {recipe.name}: {error}") from error
            seconds = state.steps[step.name].seconds
            outcomes.append(
                StepOutcome(
                    step=step.name, stage=step.stage, directory=step.directory, status=status, seconds=seconds, why=why
                )
            )
    return RunOutcome(recipe=recipe.name, directory=str(run_dir), steps=tuple(outcomes))


def _again(state: RunState, step: RecipeStep, why: str) -> str:
    """What is said of a step that was done before and is done again."""
    return f": again, because {why}" if step.name in state.steps else ""


def stage_order(stage: str) -> int:
    """The place of a stage among all."""
    return STAGES.index(stage)


def require_stages(steps: list[RecipeStep], first: str | None, last: str | None) -> None:
    """InputError for stages that the recipe does not have, or in the wrong order."""
    present = [stage for stage in STAGES if any(step.stage == stage for step in steps)]
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in present:
            raise InputError(f"{option} {stage}: this recipe does not have that stage; it has {', '.join(present)}.")
    if first is not None and last is not None and stage_order(first) > stage_order(last):
        raise InputError(f"--from {first} comes after --until {last}, so nothing would be run.")


def require_for(steps: list[RecipeStep], sources: RecipeSources, run_dir: Path, state: RunState) -> None:
    """Finds the sources that the steps read, and raises what is missing for them; a step that stands needs nothing."""
    for step in steps:
        if not state.stands(run_dir, step.name):
            step.require()
        state.digest_of(step.texts)
    # What lies here, or should, before gigabytes are fetched for nothing.
    for name in sorted({name for step in steps for name in step.inputs if name in sources}, key=sources.is_remote):
        sources.path(name)


def earlier_state(run_dir: Path, recipe: Recipe, mode: Mode, first_stage: str | None) -> RunState:
    """The state to go on from. InputError for a directory that this run must not go into."""
    state = RunState.load(run_dir)
    there = set(run_dir.iterdir()) if run_dir.is_dir() else {run_dir} if run_dir.exists() else set()
    if state is None and there.difference(_unfinished(run_dir)):
        raise InputError(f"{run_dir} exists and is not a run of qtk. Give another -o.")
    if state is not None and (state.steps or state.begun) and mode == "new" and first_stage is None:
        raise InputError(
            f"{run_dir} already holds a run. --resume does what is missing or out of date, --overwrite does everything again."
        )
    if state is None or (mode == "overwrite" and first_stage is None):
        state = RunState(recipe=recipe.name)
    return state


def _unfinished(run_dir: Path) -> list[Path]:
    """What a killed run has left of its own files. Those of its steps are theirs."""
    return [path for name in (RUN_NAME, RECIPE_COPY) for path in unfinished_files(run_dir, name)]


def begin_run(run_dir: Path, resolved: ResolvedRecipe, state: RunState) -> None:
    """The run's directory holds afterwards the recipe as it was understood: nothing inherited, no variables, paths that begin in
    the run's directory."""
    for path in _unfinished(run_dir):
        path.unlink()
    state.save(run_dir)  # first: a directory is known by it
    head = f"# The recipe of this run, read from {resolved.file.path.name} with everything put in.\n"
    write_atomic(run_dir / RECIPE_COPY, redact(head + recipe_yaml(resolved.content(run_dir))))
