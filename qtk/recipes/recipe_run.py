"""Runs a recipe: step after step, each into a directory of its own, skipping what is up to date."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

import qtk
from qtk.bench.accuracy.unfinished import unfinished_accuracy
from qtk.checkpoint.atomic import write_atomic
from qtk.checkpoint.hub import Wanted
from qtk.checkpoint.manifest import MANIFEST_NAME, canonical_digest, file_digest, read_manifest
from qtk.checkpoint.reader import COMPANION_PATTERNS, Checkpoint
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.checkpoint.staging import partial_path, remove_partial
from qtk.errors import InputError, QtkError
from qtk.progress import note
from qtk.quantization.unfinished import unfinished_quantization
from qtk.recipes.gating import require_baselines
from qtk.recipes.reading import RecipeFile, ResolvedRecipe, resolve_recipe
from qtk.recipes.recipe_text import recipe_yaml
from qtk.recipes.schema import RECIPE_COPY, Recipe, is_demo_source
from qtk.recipes.sources import resolve_source
from qtk.recipes.stages import STAGES
from qtk.recipes.state import RunState, StepRecord
from qtk.recipes.steps import MODEL, RecipeStep, adapter_name, recipe_steps

Mode = Literal["new", "resume", "overwrite"]
Status = Literal["done", "up to date", "taken as it is"]
OPTION, _INPUT = "option ", "input "  # before the names of terms


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
    is found before anything is written.
    """
    if not isinstance(resolved, ResolvedRecipe):
        resolved = resolve_recipe(resolved)
    recipe, directory = resolved.recipe, resolved.file.directory
    steps = recipe_steps(recipe, directory)
    _check_stages(steps, first_stage, last_stage)
    require_baselines(recipe.gates, directory)
    reached = [step for step in steps if last_stage is None or _order(step.stage) <= _order(last_stage)]
    state = _earlier_state(run_dir, recipe, mode, first_stage)
    sources = _Sources(recipe, directory, state)
    taken = [step for step in reached if first_stage is not None and _order(step.stage) < _order(first_stage)]
    _require([step for step in reached if step not in taken], sources, run_dir, state)
    state.keep_steps(step.name for step in steps)
    _begin(run_dir, resolved, state)
    run = _Run(run_dir, state, sources)
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


def differing_terms(recorded: Mapping[str, str], now: Mapping[str, str], at_default: frozenset[str]) -> list[str]:
    """The names of the terms that are others now than recorded.

    An option that the record does not know, because it is new, was not there: its default, in at_default, changes nothing.
    One that is no longer there decides nothing any more.
    """
    new_options = {f"{OPTION}{name}" for name in at_default} - recorded.keys()
    compared = [name for name in now if name not in new_options]
    gone = [name for name in recorded if name not in now and not name.startswith(OPTION)]
    return [name for name in compared if recorded.get(name) != now[name]] + gone


def _order(stage: str) -> int:
    return STAGES.index(stage)


def _check_stages(steps: list[RecipeStep], first: str | None, last: str | None) -> None:
    present = [stage for stage in STAGES if any(step.stage == stage for step in steps)]
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in present:
            raise InputError(f"{option} {stage}: this recipe does not have that stage; it has {', '.join(present)}.")
    if first is not None and last is not None and _order(first) > _order(last):
        raise InputError(f"--from {first} comes after --until {last}, so nothing would be run.")


def _require(steps: list[RecipeStep], sources: _Sources, run_dir: Path, state: RunState) -> None:
    """Finds the sources that the steps read, and raises what is missing for them; a step that stands needs nothing."""
    for step in steps:
        if not state.stands(run_dir, step.name):
            step.require()
        state.digest_of(step.texts)
    # What lies here, or should, before gigabytes are fetched for nothing.
    for name in sorted({name for step in steps for name in step.inputs if name in sources}, key=sources.is_remote):
        sources.path(name)


def _earlier_state(run_dir: Path, recipe: Recipe, mode: Mode, first_stage: str | None) -> RunState:
    """The state to go on from. InputError for a directory that this run must not go into."""
    state = RunState.load(run_dir)
    if state is None and run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise InputError(f"{run_dir} exists and is not a run of qtk. Give another -o.")
    if state is not None and (state.steps or state.begun) and mode == "new" and first_stage is None:
        raise InputError(
            f"{run_dir} already holds a run. --resume does what is missing or out of date, --overwrite does everything again."
        )
    if state is None or (mode == "overwrite" and first_stage is None):
        state = RunState(recipe=recipe.name)
    return state


def _begin(run_dir: Path, resolved: ResolvedRecipe, state: RunState) -> None:
    """The run directory exists afterwards and holds the recipe as it was understood: nothing inherited, no variables, paths
    that begin in the run's directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    head = f"# The recipe of this run, read from {resolved.file.path.name} with everything put in.\n"
    write_atomic(run_dir / RECIPE_COPY, head + recipe_yaml(resolved.content(run_dir)))
    state.save(run_dir)


class _Sources:
    """The recipe's own inputs, except those that steps make; looked for (and fetched) when they are first asked for."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, state: RunState) -> None:
        texts = {MODEL: recipe.model} | {adapter_name(i): text for i, text in enumerate(recipe.adapters)}
        self._texts = {name: text for name, text in texts.items() if not is_demo_source(text)}
        self._recipe_dir, self._state = recipe_dir, state
        self._directories: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def path(self, name: str) -> Path:
        if name not in self._directories:
            wanted: Wanted = "model" if name == MODEL else "adapter"
            self._directories[name] = resolve_source(self._texts[name], self._recipe_dir, wanted)
        return self._directories[name]

    def is_remote(self, name: str) -> bool:
        """Whether the source can only be a model on the hub."""
        text = self._texts[name]
        return not text.startswith((".", "/")) and not (self._recipe_dir / text).is_dir()

    def digest(self, name: str) -> str:
        """Changes when any file of the source does."""
        directory = self.path(name)
        if name == MODEL:
            files = Checkpoint(directory).files
        else:
            patterns = ("adapter_config.json", "*.safetensors", *COMPANION_PATTERNS)
            files = sorted({file for pattern in patterns for file in directory.glob(pattern)})
        return canonical_digest(self._state.digest_of(files))


def _require_nothing_to_resume(partial: Path) -> None:
    work = unfinished_quantization(partial) or unfinished_accuracy(partial)
    if work is not None:
        raise InputError(
            f"{partial} holds unfinished work: {work.sentence()}. The same command with --resume continues it, with "
            "--overwrite it starts again."
        )


class _Run:
    """A run in its directory: takes a step's output as it is, tells whether it is up to date, or makes it."""

    def __init__(self, run_dir: Path, state: RunState, sources: _Sources) -> None:
        self.run_dir, self.state, self.sources = run_dir, state, sources

    def take(self, step: RecipeStep) -> Status:
        """InputError unless the step's output stands as it was written."""
        if not self.state.stands(self.run_dir, step.name):
            raise InputError(
                f"{self.run_dir / step.directory} is missing or was changed, and --from takes it as it is. "
                "Copy it here, or run without --from."
            )
        return "taken as it is"

    def out_of_date(self, step: RecipeStep) -> str | None:
        """Why the step is to be done, as a part of a sentence; None where its output stands and is what would be made now."""
        record = self.state.steps.get(step.name)
        if record is None:
            return "it was not done yet"
        if not self.state.stands(self.run_dir, step.name):
            return "its output is missing or was changed"
        terms = self._terms(step)
        if not record.terms:
            made_by = read_manifest(self.run_dir / step.directory).qtk_version
            known = record.digest == self._digest_of_old(step, made_by) and RESULT_VERSIONS[step.stage] == 1
            return None if known else f"what qtk {made_by} made it from is not what would be used now"
        differing = differing_terms(record.terms, terms, step.options.at_default)
        return f"since then there is another {', another '.join(differing)}" if differing else None

    def do(self, step: RecipeStep, mode: Mode) -> Status:
        """Makes the step's output. An unfinished one that was begun on the same terms is continued in the mode "resume" and
        refused in the mode "new" (InputError); what cannot be continued is removed with a note."""
        terms, out = self._terms(step), self.run_dir / step.directory
        digest = canonical_digest(terms)
        begun_alike = self.state.begun.get(step.name) == digest and partial_path(out).is_dir()
        if begun_alike and mode == "new":
            _require_nothing_to_resume(partial_path(out))
        resume = begun_alike and mode == "resume"
        if not resume:
            remove_partial(out, "everything is to be done again" if begun_alike else "it was begun on other terms")
        self.state.begun[step.name] = digest
        self.state.save(self.run_dir)
        start = time.monotonic()
        step.work({name: self._place(name) for name in step.inputs}, out, resume)
        del self.state.begun[step.name]
        self.state.steps[step.name] = StepRecord(
            stage=step.stage,
            directory=step.directory,
            digest=digest,
            terms=terms,
            manifest_sha256=file_digest(out / MANIFEST_NAME).sha256,
            seconds=round(time.monotonic() - start, 2),
        )
        self.state.save(self.run_dir)
        return "done"

    def _terms(self, step: RecipeStep) -> dict[str, str]:
        """Everything that decides the step's output, by the name that is told when it changes. qtk's version is not among it:
        the number of the stage's results is. A report takes seconds, so each version writes its own."""
        version = qtk.__version__ if step.stage == "report" else RESULT_VERSIONS[step.stage]
        inputs = {f"{_INPUT}{name}": digest for name, digest in self._inputs(step).items()}
        texts = {f"text {name}": digest for name, digest in self.state.digest_of(step.texts).items()}
        options = {f"{OPTION}{name}": canonical_digest(value) for name, value in step.options.values.items()}
        return {f"version of qtk's {step.stage}": str(version), **options, **inputs, **texts}

    def _inputs(self, step: RecipeStep) -> dict[str, str]:
        return {
            name: self.sources.digest(name) if name in self.sources else self.state.steps[name].manifest_sha256
            for name in step.inputs
        }

    def _digest_of_old(self, step: RecipeStep, qtk_version: str) -> str:
        """The digest of a record that has no terms."""
        return canonical_digest(
            {
                "qtk": qtk_version,
                "options": step.options.values,
                "inputs": self._inputs(step),
                "texts": self.state.digest_of(step.texts),
            }
        )

    def _place(self, name: str) -> Path:
        return self.sources.path(name) if name in self.sources else self.run_dir / self.state.steps[name].directory
