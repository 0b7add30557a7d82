"""Runs a recipe: step after step, each into a directory of its own, skipping what is up to date."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

import qtk
from qtk.checkpoint.manifest import MANIFEST_NAME, Finding, canonical_digest, file_digest, output_files, verify_chain
from qtk.checkpoint.reader import COMPANION_PATTERNS, Checkpoint
from qtk.checkpoint.staging import partial_path, remove_partial
from qtk.errors import InputError, QtkError, listing
from qtk.progress import note
from qtk.recipes.schema import Recipe, read_recipe
from qtk.recipes.sources import resolve_source
from qtk.recipes.state import RUN_NAME, RunState, StepRecord
from qtk.recipes.steps import MODEL, STAGES, Step, adapter_name, recipe_steps

Mode = Literal["new", "resume", "overwrite"]
RECIPE_COPY = "recipe.yaml"


class StepOutcome(BaseModel):
    """What became of a step; seconds are those of the work, whenever it was done."""

    model_config = ConfigDict(frozen=True)
    step: str
    stage: str
    directory: str
    status: Literal["done", "up to date", "taken as it is"]
    seconds: float


class RunOutcome(BaseModel):
    """The result of `qtk run`: its directory, and every step that was reached."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    directory: str
    steps: tuple[StepOutcome, ...]


def run_recipe(
    path: Path,
    run_dir: Path,
    *,
    mode: Mode = "new",
    first_stage: str | None = None,
    last_stage: str | None = None,
) -> RunOutcome:
    """Runs the recipe in `path` into `run_dir`.

    mode "new" refuses a directory where a run was begun; "resume" does what is missing or out of date (its options,
    an input or qtk's version changed); "overwrite" does everything again. With `first_stage`, the stages before it
    are taken as they are (they may come from another machine), and from it on everything is done again. Every step's
    directory is replaced only when its successor is complete. A failing step's error names the step.
    """
    recipe = read_recipe(path)
    steps = recipe_steps(recipe, path.parent)
    _check_stages(steps, first_stage, last_stage)
    state = _begin(run_dir, path, recipe, mode, first_stage)
    sources = _Sources(recipe, path.parent, state)
    outcomes: list[StepOutcome] = []
    wanted = [step for step in steps if last_stage is None or STAGES.index(step.stage) <= STAGES.index(last_stage)]
    for number, step in enumerate(wanted, start=1):
        taken = first_stage is not None and STAGES.index(step.stage) < STAGES.index(first_stage)
        again = mode == "overwrite" or (first_stage is not None and not taken)
        try:
            status = _settle(step, run_dir, state, sources, taken=taken, again=again, label=f"[{number}/{len(wanted)}]")
        except QtkError as error:
            raise type(error)(f"Step {step.name} of {recipe.name}: {error}") from error
        record = state.steps[step.name]
        outcomes.append(
            StepOutcome(
                step=step.name, stage=step.stage, directory=step.directory, status=status, seconds=record.seconds
            )
        )
    return RunOutcome(recipe=recipe.name, directory=str(run_dir), steps=tuple(outcomes))


def _check_stages(steps: list[Step], first: str | None, last: str | None) -> None:
    present = [stage for stage in STAGES if any(step.stage == stage for step in steps)]
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in present:
            raise InputError(f"{option} {stage}: this recipe has no such stage; it has {', '.join(present)}.")
    if first is not None and last is not None and STAGES.index(first) > STAGES.index(last):
        raise InputError(f"--from {first} comes after --until {last}, so nothing would be run.")


def _begin(run_dir: Path, path: Path, recipe: Recipe, mode: Mode, first_stage: str | None) -> RunState:
    """The state to go on from; the run directory exists afterwards and holds a copy of the recipe."""
    state = RunState.load(run_dir)
    if state is None and run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise InputError(f"{run_dir} exists and is no run of qtk. Give another -o.")
    if state is not None and mode == "new" and first_stage is None:
        raise InputError(
            f"{run_dir} holds a run already. --resume does what is missing or out of date, --overwrite does it all again."
        )
    if state is None or mode == "overwrite":
        state = RunState(recipe=recipe.name)
    run_dir.mkdir(parents=True, exist_ok=True)
    if path.resolve() != (run_dir / RECIPE_COPY).resolve():
        shutil.copyfile(path, run_dir / RECIPE_COPY)
    state.save(run_dir)
    return state


class _Sources:
    """The recipe's own inputs, looked for (and fetched) when a step first needs them."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, state: RunState) -> None:
        self._texts = {MODEL: recipe.model} | {adapter_name(i): text for i, text in enumerate(recipe.adapters)}
        self._recipe_dir, self._state = recipe_dir, state
        self._found: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def path(self, name: str) -> Path:
        if name not in self._found:
            self._found[name] = resolve_source(self._texts[name], self._recipe_dir)
        return self._found[name]

    def digest(self, name: str) -> str:
        """Changes when any file of the source does."""
        directory = self.path(name)
        if name == MODEL:
            files = Checkpoint(directory).files
        else:
            patterns = ("adapter_config.json", "*.safetensors", *COMPANION_PATTERNS)
            files = sorted({file for pattern in patterns for file in directory.glob(pattern)})
        return canonical_digest(self._state.digest_of(files))


def _settle(
    step: Step, run_dir: Path, state: RunState, sources: _Sources, *, taken: bool, again: bool, label: str
) -> Literal["done", "up to date", "taken as it is"]:
    """Sees to it that the step's output stands: takes it, finds it up to date, or makes it."""
    stands = state.stands(run_dir, step.name)
    if taken:
        if not stands:
            raise InputError(
                f"{run_dir / step.directory} is missing or was changed, and --from takes it as it is. "
                "Copy it here, or run without --from."
            )
        return "taken as it is"
    digest = canonical_digest(
        {
            "qtk": qtk.__version__,
            "options": step.options,
            "inputs": {
                name: sources.digest(name) if name in sources else state.steps[name].manifest_sha256
                for name in step.inputs
            },
            "texts": state.digest_of(step.texts),
        }
    )
    if stands and not again and state.steps[step.name].digest == digest:
        note(f"{label} {step.name}: up to date")
        return "up to date"
    note(f"{label} {step.name}")
    out = run_dir / step.directory
    places = {
        name: sources.path(name) if name in sources else run_dir / state.steps[name].directory for name in step.inputs
    }
    resume = not again and state.begun.get(step.name) == digest and partial_path(out).is_dir()
    if not resume:  # what a run on other terms left is of no use
        remove_partial(out)
    state.begun[step.name] = digest
    state.save(run_dir)
    start = time.monotonic()
    step.work(places, out, resume)
    del state.begun[step.name]
    state.steps[step.name] = StepRecord(
        stage=step.stage,
        directory=step.directory,
        digest=digest,
        manifest_sha256=file_digest(out / MANIFEST_NAME).sha256,
        seconds=round(time.monotonic() - start, 2),
    )
    state.save(run_dir)
    return "done"


def is_run(directory: Path) -> bool:
    """Whether `directory` is a run's."""
    return (directory / RUN_NAME).is_file()


class StepSummary(BaseModel):
    """A step as its run records it; bytes of all its files, 0 where they are gone."""

    model_config = ConfigDict(frozen=True)
    step: str
    stage: str
    directory: str
    status: Literal["stands", "changed or missing"]
    seconds: float
    bytes: int


class RunSummary(BaseModel):
    """What `qtk inspect` says of a run."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["run"] = "run"
    recipe: str
    steps: tuple[StepSummary, ...]


def run_summary(run_dir: Path) -> RunSummary:
    """The steps that were done, and whether their outputs stand. InputError where no run was begun."""
    state = _state(run_dir)
    return RunSummary(
        recipe=state.recipe,
        steps=tuple(
            StepSummary(
                step=name,
                stage=record.stage,
                directory=record.directory,
                status="stands" if state.stands(run_dir, name) else "changed or missing",
                seconds=record.seconds,
                bytes=sum(path.stat().st_size for path in output_files(run_dir / record.directory)),
            )
            for name, record in state.steps.items()
        ),
    )


def _state(run_dir: Path) -> RunState:
    state = RunState.load(run_dir)
    if state is None:
        raise InputError(f"{run_dir} holds no run.")
    return state


def measured_directories(run_dir: Path) -> list[Path]:
    """The directories of the run's steps but its report, in their order: what a report is written from."""
    return [run_dir / record.directory for record in _state(run_dir).steps.values() if record.stage != "report"]


def verify_run(run_dir: Path) -> list[Finding]:
    """The findings of every step's chain. InputError where no run was begun, or a step's directory is gone."""
    state = _state(run_dir)
    absent = [record.directory for record in state.steps.values() if not (run_dir / record.directory).is_dir()]
    if absent:
        raise InputError(f"{run_dir} lacks directories that its steps wrote:\n{listing(absent)}")
    return verify_chain(*(run_dir / record.directory for record in state.steps.values()))
