"""`qtk sweep`: a recipe at every point of a grid, each variant a run of its own; what variants have in common is done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qtk.checkpoint.directory_lock import held_directory
from qtk.errors import InputError, QtkError, listing
from qtk.progress import note
from qtk.recipes.gating import require_baselines
from qtk.recipes.reading import RecipeFile, ResolvedRecipe, resolve_recipe
from qtk.recipes.recipe_run import begin_run, earlier_state, require_for
from qtk.recipes.step_work import BegunStep, Mode, RecipeSources, StepWork
from qtk.recipes.steps import RecipeStep, recipe_steps
from qtk.sweeps.grid import Axis, Variant, variants
from qtk.sweeps.step_runner import FinishedJob, OneByOne, StepJob, StepRunner
from qtk.wording import counted


@dataclass
class _VariantRun:
    """A variant on its way: its steps, how many of them are done, what it does now, and why it ended early."""

    variant: Variant
    work: StepWork
    steps: list[RecipeStep]
    done: int = 0
    begun: BegunStep | None = None
    error: QtkError | None = None

    @property
    def next_step(self) -> RecipeStep | None:
        return None if self.error is not None or self.done == len(self.steps) else self.steps[self.done]


@dataclass(frozen=True)
class SweptVariant:
    """How a variant ended: its run's directory, and the error that ended it, None where every step is done."""

    variant: Variant
    directory: Path
    error: QtkError | None


def run_sweep(
    file: RecipeFile,
    axes: Sequence[Axis],
    out: Path,
    *,
    settings: Sequence[str] = (),
    mode: Mode = "new",
    runner: Callable[[], StepRunner] = OneByOne,
) -> tuple[SweptVariant, ...]:
    """Runs the recipe in `file`, with `settings`, at every point of the grid into out/NAME, a run as `qtk run` makes it.

    Steps that make the same, by all that decides their output, are done in one run, and the others share its files. A
    variant that fails ends there, and the others go on. mode: as of `run_recipe`. runner: opens what does the steps.
    InputError, before any work, for variants that are not valid recipes, for what `run_recipe` refuses, and while another
    command works in `out` or in the run of one of the variants.
    """
    resolved = _resolved(file, variants(axes), settings)
    with ExitStack() as held:
        held.enter_context(held_directory(out))
        if mode == "new" and any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty. --resume continues a sweep, --overwrite does it again.")
        for variant in resolved:
            held.enter_context(held_directory(out / variant.name))
        runs = [_begun_run(variant, recipe, out / variant.name, mode) for variant, recipe in resolved.items()]
        sweep = _Sweep(runs, mode, runner())
        held.callback(sweep.runner.close)
        sweep.run()
    return tuple(SweptVariant(run.variant, run.work.run_dir, run.error) for run in runs)


def _resolved(file: RecipeFile, found: Sequence[Variant], settings: Sequence[str]) -> dict[Variant, ResolvedRecipe]:
    """The recipe of every variant. InputError with what is wrong with any of them."""
    plain = resolve_recipe(file, settings).recipe
    title = plain.description or plain.name
    recipes, complaints = {}, []
    for variant in found:
        # The grid comes last, so that it counts. A description of its own tells the reports apart.
        own = (f"name={plain.name[:100]}.{variant.name}", f"description={title}: {variant.words}")
        try:
            recipes[variant] = resolve_recipe(file, (*settings, *own, *variant.set_texts))
        except InputError as error:
            if str(error) not in complaints:
                complaints.append(str(error))
    if complaints:
        raise InputError("\n".join(complaints))
    return recipes


def _begun_run(variant: Variant, resolved: ResolvedRecipe, run_dir: Path, mode: Mode) -> _VariantRun:
    recipe, directory = resolved.recipe, resolved.file.directory
    steps = recipe_steps(recipe, directory)
    require_baselines(recipe.gates, directory)
    state = earlier_state(run_dir, recipe, mode, None)
    sources = RecipeSources(recipe, directory, state)
    require_for(steps, sources, run_dir, state)
    state.keep_steps(step.name for step in steps)
    begin_run(run_dir, resolved, state)
    return _VariantRun(variant, StepWork(run_dir, state, sources), steps)


class _Sweep:
    """The variants' steps, given to the runner as they become possible."""

    def __init__(self, runs: Sequence[_VariantRun], mode: Mode, runner: StepRunner) -> None:
        self.runs, self.mode, self.runner = runs, mode, runner
        self.made: dict[str, StepWork] = {}  # digest of a step -> the run that holds its output
        self.failed: dict[str, QtkError] = {}
        self.working: dict[StepJob, tuple[_VariantRun, BegunStep]] = {}
        self.total = sum(len(run.steps) for run in runs)
        note(f"{counted(len(runs), 'variant')}, {counted(self.total, 'step')} in all.")

    def run(self) -> None:
        while True:
            advanced = [self._advance(run) for run in self.runs]
            if any(advanced):
                continue
            if not self.working:
                return
            self._take(self.runner.wait())

    def _advance(self, run: _VariantRun) -> bool:
        """Does what can be done about a run's next step without waiting. Whether anything was."""
        step = run.next_step
        if step is None or run.begun is not None:
            return False
        try:
            digest = run.work.digest(step)
            if self._is_done(run, step, digest):
                run.done += 1
                self.made.setdefault(digest, run.work)
                return True
            if digest in self.failed:
                run.error = self.failed[digest]
                return True
            if (
                any(begun.digest == digest for _, begun in self.working.values())
                or len(self.working) >= self.runner.slots
            ):
                return False
            run.begun = run.work.begin(step, "resume" if self.mode == "resume" else "overwrite")
        except QtkError as error:
            self._fail(run, step, error)
            return True
        job = StepJob(run.work.run_dir.absolute(), step.name, step.stage)
        self.working[job] = (run, run.begun)
        note(f"[{self._count()}] {run.variant.name}: {step.name}")
        self.runner.start(job)
        return True

    def _is_done(self, run: _VariantRun, step: RecipeStep, digest: str) -> bool:
        """Whether the step's output stands in the run, or does now, because another run has it."""
        if run.work.out_of_date(step) is None:
            return True
        if digest not in self.made or self.made[digest] is run.work:
            return False
        run.work.adopt(step, self.made[digest])
        note(f"[{self._count()}] {run.variant.name}: {step.name}, as in {self.made[digest].run_dir.name}")
        return True

    def _count(self) -> str:
        done = sum(run.done for run in self.runs)
        return f"{done + 1}/{self.total}"

    def _take(self, finished: FinishedJob) -> None:
        run, begun = self.working.pop(finished.job)
        run.begun = None
        if finished.error is not None:
            self.failed[begun.digest] = finished.error
            self._fail(run, begun.step, finished.error)
            return
        if finished.where:
            note(f"{run.variant.name}: {begun.step.name} took {finished.seconds:.1f} s on {finished.where}")
        run.work.finish(begun, finished.seconds)
        run.done += 1
        self.made[begun.digest] = run.work

    def _fail(self, run: _VariantRun, step: RecipeStep, error: QtkError) -> None:
        run.error = type(error)(f"Step {step.name} of {run.variant.name}: {error}")
        note(str(run.error))


def failures(swept: Sequence[SweptVariant]) -> QtkError | None:
    """The error that a sweep ends with: of the kind of the first variant that failed, naming all of them; None without one."""
    failed = [it for it in swept if it.error is not None]
    if not failed:
        return None
    kind = type(failed[0].error)
    assert issubclass(kind, QtkError)
    words = f"{len(failed)} of {counted(len(swept), 'variant')} failed"
    return kind(f"{words}:\n{listing(dict.fromkeys(str(it.error) for it in failed))}")
