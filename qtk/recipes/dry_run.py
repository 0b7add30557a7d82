"""What `qtk run` would do: which steps, why, how long it takes, what is written, what the machine lacks. Nothing on the disk
changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtk.checkpoint.hub import Wanted
from qtk.checkpoint.manifest import MANIFEST_NAME, read_manifest
from qtk.checkpoint.staging import partial_path
from qtk.engines.forecast import Rates, measured_rates
from qtk.errors import InputError, MachineError
from qtk.machine import available_memory, total_memory
from qtk.recipes.gating import require_baselines
from qtk.recipes.machine_lacks import Lack, MemoryThere, SuiteTasks, step_lacks, suite_tasks_of
from qtk.recipes.named_sources import NamedSources, adapters_rank, named_sources, planned_spec
from qtk.recipes.planned_model import PlannedModel, planned_model
from qtk.recipes.planned_run import DryRun, PlannedSource, PlannedStatus, PlannedStep
from qtk.recipes.reading import RecipeFile, ResolvedRecipe, resolve_recipe
from qtk.recipes.recipe_run import earlier_state, require_stages, stage_order
from qtk.recipes.state import RunState
from qtk.recipes.step_forecasts import Forecasts, Takes
from qtk.recipes.step_work import Mode, RecipeSources, StepWork
from qtk.recipes.steps import MODEL, RecipeStep, recipe_steps
from qtk.sizes import size_text


def _free_disk(place: Path) -> int:
    return shutil.disk_usage(place).free


@dataclass(frozen=True)
class Resources:
    """What there is to run with. disk: the free bytes at a place; rates: how fast the machine is, with scratch files at a place."""

    memory: MemoryThere = field(default_factory=lambda: MemoryThere(total_memory(), available_memory()))
    disk: Callable[[Path], int] = _free_disk
    rates: Callable[[Path], Rates] = measured_rates


@dataclass(frozen=True)
class StepVerdict:
    """Whether a step would be done, and why."""

    status: PlannedStatus
    why: str | None = None


def dry_run(
    resolved: ResolvedRecipe | RecipeFile | Path,
    run_dir: Path,
    *,
    mode: Mode = "resume",
    first_stage: str | None = None,
    last_stage: str | None = None,
    resources: Resources | None = None,
) -> DryRun:
    """What `run_recipe` would do with the same arguments. A run that was begun is looked at as one that is resumed, unless the mode is
    "overwrite". resources: None for those of this machine. InputError as of `run_recipe`, and for what the recipe's target
    cannot take."""
    if not isinstance(resolved, ResolvedRecipe):
        resolved = resolve_recipe(resolved)
    recipe, directory, here = resolved.recipe, resolved.file.directory, resources or Resources()
    steps = recipe_steps(recipe, directory)
    require_stages(steps, first_stage, last_stage)
    require_baselines(recipe.gates, directory)
    begun = RunState.load(run_dir)
    state = earlier_state(run_dir, recipe, "resume" if mode == "new" else mode, first_stage)
    sources = named_sources(recipe, directory)

    def place_of(text: str, _: Path, wanted: Wanted) -> Path:
        found = next((it.directory for it in sources.values() if it.text == text), None)
        assert found is not None, "a source that is not here counts as another input and is not asked for"
        return found

    work = StepWork(run_dir, state, RecipeSources(recipe, directory, state, place_of))
    reached = [step for step in steps if last_stage is None or stage_order(step.stage) <= stage_order(last_stage)]
    absent = {name for name, source in sources.items() if source.directory is None}
    verdicts = _verdicts(reached, work, absent, "overwrite" if mode == "overwrite" else first_stage)
    to_do = [step for step in reached if verdicts[step.name].status == "to do"]
    for file in (file for step in to_do for file in step.texts):
        if not file.is_file():
            raise InputError(f"{file}: no such file.")
    spec = planned_spec(sources, run_dir, state)
    model = planned_model(recipe, directory, spec, adapters_rank(recipe, sources)) if spec is not None else None
    accuracy = next((step.name for step in to_do if step.stage == "accuracy"), None)
    tasks = SuiteTasks(None, ())
    if accuracy is not None and recipe.bench.accuracy is not None:
        tasks = suite_tasks_of(accuracy, recipe.bench.accuracy.accuracy_options(directory))
    place = _existing(run_dir)
    lacks = [Lack(what="hub", step=name, text=it.absent) for name, it in sources.items() if it.absent is not None]
    rates: Rates | None = None
    if to_do and model is not None:
        try:
            rates = here.rates(place)
        except MachineError as error:  # the disk is too full to time a write
            lacks.append(Lack(what="disk", step=to_do[0].name, text=str(error)))
    takes = _forecast(to_do, model, rates, lambda m, r: Forecasts(recipe, m, r, tasks.programs))
    planned = tuple(
        _planned(step, verdicts[step.name], takes.get(step.name, Takes()), run_dir, begun) for step in reached
    )
    needed, free = _needed_disk(planned, run_dir), here.disk(place)
    for step in to_do:
        lacks += step_lacks(step, recipe, model, takes.get(step.name, Takes()), here.memory)
    lacks += tasks.lacks
    lacks += _disk_lacks(to_do[0].name if to_do else MODEL, _Room(place, needed, free), sources, here)
    return DryRun(
        recipe=recipe.name,
        directory=str(run_dir),
        begun=begun is not None,
        sources=tuple(
            PlannedSource(source=name, text=it.text, place=it.directory and str(it.directory), missing=it.missing)
            for name, it in sources.items()
        ),
        steps=planned,
        needed_disk=needed,
        free_disk=free,
        available_memory=here.memory.available,
        rates=rates,
        lacks=tuple(dict.fromkeys(lacks)),
    )


def _verdicts(
    steps: Iterable[RecipeStep], work: StepWork, absent: Iterable[str], asked: str | None
) -> Mapping[str, StepVerdict]:
    """By the names of the steps. absent: sources that are not here yet; asked: "overwrite", or the first stage to do again."""
    made_anew, found = set(absent), dict[str, StepVerdict]()
    for step in steps:
        if asked is None:
            why = work.out_of_date(step, frozenset(made_anew))
            verdict = StepVerdict("to do" if why else "up to date", why)
        elif asked == "overwrite" or stage_order(step.stage) >= stage_order(asked):
            verdict = StepVerdict("to do", "it was asked for")
        else:
            work.take(step)
            verdict = StepVerdict("taken as it is")
        if verdict.status == "to do":
            made_anew.add(step.name)
            if step.name in work.state.begun and partial_path(work.run_dir / step.directory).is_dir():
                verdict = StepVerdict("to do", f"{verdict.why}; it was begun")
        found[step.name] = verdict
    return found


def _forecast(
    steps: Iterable[RecipeStep],
    model: PlannedModel | None,
    rates: Rates | None,
    forecasts: Callable[[PlannedModel, Rates], Forecasts],
) -> Mapping[str, Takes]:
    if model is None or rates is None:
        return {}
    found = forecasts(model, rates)
    return {step.name: found.of(step) for step in steps}


def _planned(
    step: RecipeStep, verdict: StepVerdict, takes: Takes, run_dir: Path, begun: RunState | None
) -> PlannedStep:
    """With what it takes; what it took the time before tells more than no forecast, or a bound."""
    before = begun.steps.get(step.name) if begun is not None else None
    planned = PlannedStep(
        step=step.name, stage=step.stage, directory=step.directory, status=verdict.status, why=verdict.why
    )
    if verdict.status != "to do":
        return planned.model_copy(update={"written": _bytes_of(run_dir / step.directory)})
    measured = before.seconds if before is not None and (takes.seconds is None or takes.at_most) else None
    return planned.model_copy(
        update={
            "written": takes.written,
            "scratch": takes.scratch,
            "memory": takes.memory,
            "seconds": takes.seconds if measured is None else measured,
            "at_most": takes.at_most and measured is None,
            "measured": measured is not None,
        }
    )


def _bytes_of(directory: Path) -> int:
    return sum(digest.bytes for digest in read_manifest(directory).outputs.values())


def _needed_disk(steps: Iterable[PlannedStep], run_dir: Path) -> int:
    """The most that the steps write beyond what is there: an output is replaced only when its successor is complete, and what an
    unfinished one holds is written already."""
    held = most = 0
    for step in steps:
        if step.status != "to do":
            continue
        out = run_dir / step.directory
        partial = partial_path(out)
        begun = sum(it.stat().st_size for it in partial.rglob("*") if it.is_file()) if partial.is_dir() else 0
        held += step.written or 0
        most = max(most, held - begun + (step.scratch or 0))
        if (out / MANIFEST_NAME).is_file():
            held -= _bytes_of(out)
    return most


@dataclass(frozen=True)
class _Room:
    """Bytes that are needed on a disk and those that are free."""

    place: Path
    needed: int
    free: int

    def lack(self, step: str) -> list[Lack]:
        if self.needed <= self.free:
            return []
        text = (
            f"{self.place}: {size_text(self.needed)} are needed at the most, the disk has {size_text(self.free)} free"
        )
        return [Lack(what="disk", step=step, text=text)]


def _disk_lacks(first: str, run: _Room, sources: NamedSources, here: Resources) -> list[Lack]:
    """Room for what the steps write and for what is fetched, on one disk or on two. first: the first step to do."""
    fetched = sum(source.missing for source in sources.values())
    if not fetched:
        return run.lack(first)
    from huggingface_hub import constants

    cache = _existing(Path(constants.HF_HUB_CACHE))
    if cache.stat().st_dev == run.place.stat().st_dev:
        return _Room(run.place, run.needed + fetched, run.free).lack(first)
    return run.lack(first) + _Room(cache, fetched, here.disk(cache)).lack(MODEL)


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else next(parent for parent in path.parents if parent.is_dir())
