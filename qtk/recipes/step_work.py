"""The steps of a run in its directory: where their sources lie, whether their outputs are up to date, and doing them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import qtk
from qtk.bench.accuracy.unfinished import unfinished_accuracy
from qtk.checkpoint.hub import Wanted
from qtk.checkpoint.manifest import MANIFEST_NAME, canonical_digest, file_digest, read_manifest
from qtk.checkpoint.reader import COMPANION_PATTERNS, Checkpoint
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.checkpoint.staging import partial_path, remove_partial, staged_directory
from qtk.errors import InputError
from qtk.finetuning.unfinished import unfinished_training
from qtk.quantization.unfinished import unfinished_quantization
from qtk.recipes.schema import Recipe, is_demo_source
from qtk.recipes.sources import resolve_source
from qtk.recipes.state import RunState, StepRecord
from qtk.recipes.steps import MODEL, RecipeStep, adapter_name

Mode = Literal["new", "resume", "overwrite"]
Status = Literal["done", "up to date", "taken as it is"]
Resolver = Callable[[str, Path, Wanted], Path]
OPTION, _INPUT = "option ", "input "  # before the names of terms
_MADE_ANEW = "made anew"  # in place of a digest


def differing_terms(recorded: Mapping[str, str], now: Mapping[str, str], at_default: frozenset[str]) -> list[str]:
    """The names of the terms that are others now than recorded.

    An option that the record does not know, because it is new, was not there: its default, in at_default, changes nothing.
    One that is no longer there decides nothing any more.
    """
    new_options = {f"{OPTION}{name}" for name in at_default} - recorded.keys()
    compared = [name for name in now if name not in new_options]
    gone = [name for name in recorded if name not in now and not name.startswith(OPTION)]
    return [name for name in compared if recorded.get(name) != now[name]] + gone


class RecipeSources:
    """The recipe's own inputs, except those that steps make; looked for (and fetched) when they are first asked for.

    resolve: finds the directory of a source.
    """

    def __init__(self, recipe: Recipe, recipe_dir: Path, state: RunState, resolve: Resolver = resolve_source) -> None:
        texts = {MODEL: recipe.model} | {adapter_name(i): text for i, text in enumerate(recipe.adapters)}
        self._texts = {name: text for name, text in texts.items() if not is_demo_source(text)}
        self._recipe_dir, self._state = recipe_dir, state
        self._resolve = resolve
        self._directories: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def path(self, name: str) -> Path:
        if name not in self._directories:
            wanted: Wanted = "model" if name == MODEL else "adapter"
            self._directories[name] = self._resolve(self._texts[name], self._recipe_dir, wanted)
        return self._directories[name]

    def text(self, name: str) -> str:
        """The source as the recipe names it."""
        return self._texts[name]

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
    work = unfinished_quantization(partial) or unfinished_training(partial) or unfinished_accuracy(partial)
    if work is not None:
        raise InputError(
            f"{partial} holds unfinished work: {work.sentence()}. The same command with --resume continues it, with "
            "--overwrite it starts again."
        )


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@dataclass(frozen=True)
class BegunStep:
    """A step whose work may start. terms: what decides its output, by name; digest: of them. resume: an unfinished output lies
    there, begun on the same terms."""

    step: RecipeStep
    terms: dict[str, str]
    digest: str
    resume: bool


class StepWork:
    """A run in its directory: takes a step's output as it is, tells whether it is up to date, or makes it."""

    def __init__(self, run_dir: Path, state: RunState, sources: RecipeSources) -> None:
        self.run_dir, self.state, self.sources = run_dir, state, sources

    def take(self, step: RecipeStep) -> Status:
        """InputError unless the step's output stands as it was written."""
        if not self.state.stands(self.run_dir, step.name):
            raise InputError(
                f"{self.run_dir / step.directory} is missing or was changed, and --from takes it as it is. "
                "Copy it here, or run without --from."
            )
        return "taken as it is"

    def out_of_date(self, step: RecipeStep, made_anew: frozenset[str] = frozenset()) -> str | None:
        """Why the step is to be done, as a part of a sentence; None where its output stands and is what would be made now.

        made_anew: inputs that will be others when the step's turn comes.
        """
        record = self.state.steps.get(step.name)
        if record is None:
            return "it was not done yet"
        if not self.state.stands(self.run_dir, step.name):
            return "its output is missing or was changed"
        terms = self._terms(step, made_anew)
        if not record.terms:
            made_by = read_manifest(self.run_dir / step.directory).qtk_version
            digest = self._digest_of_old(step, made_by, made_anew)
            known = record.digest == digest and RESULT_VERSIONS[step.stage] == 1
            return None if known else f"what qtk {made_by} made it from is not what would be used now"
        differing = differing_terms(record.terms, terms, step.options.at_default)
        return f"since then there is another {', another '.join(differing)}" if differing else None

    def do(self, step: RecipeStep, mode: Mode) -> Status:
        """Makes the step's output. An unfinished one that was begun on the same terms is continued in the mode "resume" and
        refused in the mode "new" (InputError); what cannot be continued is removed with a note."""
        begun = self.begin(step, mode)
        start = time.monotonic()
        self.make(step, resume=begun.resume)
        self.finish(begun, time.monotonic() - start)
        return "done"

    def begin(self, step: RecipeStep, mode: Mode) -> BegunStep:
        """Settles what lies in place of the step's output, and records that it is begun. InputError: see `do`."""
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
        return BegunStep(step, terms, digest, resume)

    def make(self, step: RecipeStep, *, resume: bool) -> None:
        """Writes the step's output, and nothing else."""
        step.work({name: self._place(name) for name in step.inputs}, self.run_dir / step.directory, resume)

    def finish(self, begun: BegunStep, seconds: float) -> None:
        """Records that the output stands."""
        step = begun.step
        del self.state.begun[step.name]
        self.state.steps[step.name] = StepRecord(
            stage=step.stage,
            directory=step.directory,
            digest=begun.digest,
            terms=begun.terms,
            manifest_sha256=file_digest(self.run_dir / step.directory / MANIFEST_NAME).sha256,
            seconds=round(seconds, 2),
        )
        self.state.save(self.run_dir)

    def digest(self, step: RecipeStep) -> str:
        """Equal for steps, of any run, that make the same."""
        return canonical_digest(self._terms(step))

    def adopt(self, step: RecipeStep, other: StepWork) -> None:
        """Takes the output of the same step of another run, whose `digest` is equal. The files are shared where the file
        system has hard links, and copied otherwise; qtk replaces files and never writes into them."""
        record = other.state.steps[step.name]
        out, source = self.run_dir / step.directory, other.run_dir / record.directory
        remove_partial(out, "another run has made the same")
        with staged_directory(out, overwrite=True, inputs=[source]) as partial:
            shutil.rmtree(partial)
            shutil.copytree(source, partial, copy_function=_linked)
        self.state.begun.pop(step.name, None)
        self.state.steps[step.name] = record
        self.state.save(self.run_dir)

    def _terms(self, step: RecipeStep, made_anew: frozenset[str] = frozenset()) -> dict[str, str]:
        """Everything that decides the step's output, by the name that is told when it changes. qtk's version is not among it:
        the number of the stage's results is. A report takes seconds, so each version writes its own."""
        version = qtk.__version__ if step.stage == "report" else RESULT_VERSIONS[step.stage]
        inputs = {f"{_INPUT}{name}": digest for name, digest in self._inputs(step, made_anew).items()}
        texts = {f"text {name}": digest for name, digest in self.state.digest_of(step.texts).items()}
        options = {f"{OPTION}{name}": canonical_digest(value) for name, value in step.options.values.items()}
        return {f"version of qtk's {step.stage}": str(version), **options, **inputs, **texts}

    def _inputs(self, step: RecipeStep, made_anew: frozenset[str]) -> dict[str, str]:
        return {name: _MADE_ANEW if name in made_anew else self._digest(name) for name in step.inputs}

    def _digest(self, name: str) -> str:
        return self.sources.digest(name) if name in self.sources else self.state.steps[name].manifest_sha256

    def _digest_of_old(self, step: RecipeStep, qtk_version: str, made_anew: frozenset[str]) -> str:
        """The digest of a record that has no terms."""
        return canonical_digest(
            {
                "qtk": qtk_version,
                "options": step.options.values,
                "inputs": self._inputs(step, made_anew),
                "texts": self.state.digest_of(step.texts),
            }
        )

    def _place(self, name: str) -> Path:
        return self.sources.path(name) if name in self.sources else self.run_dir / self.state.steps[name].directory
