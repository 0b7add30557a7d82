"""What a run has left: its steps, the directories a report is written from, and the check of every step's chain.

Reads qtk-run.json and manifests only, so that `qtk inspect` and `qtk verify` load nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.checkpoint.manifest import Finding, output_files, verify_chain
from qtk.errors import InputError, listing
from qtk.recipes.state import RUN_NAME, RunState


class StepSummary(BaseModel):
    """A step as its run records it. bytes: of all files in its directory, 0 where they are gone."""

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


def is_run(directory: Path) -> bool:
    """Whether a run was begun in `directory`."""
    return (directory / RUN_NAME).is_file()


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


def measured_directories(run_dir: Path) -> list[Path]:
    """The directories of the run's steps, in their order, except the report's: what a report is written from."""
    return [run_dir / record.directory for record in _state(run_dir).steps.values() if record.stage != "report"]


def verify_run(run_dir: Path) -> list[Finding]:
    """The findings of every step's chain. InputError where no run was begun, or a step's directory is gone."""
    directories = [record.directory for record in _state(run_dir).steps.values()]
    absent = [name for name in directories if not (run_dir / name).is_dir()]
    if absent:
        raise InputError(f"{run_dir} lacks directories that its steps wrote:\n{listing(absent)}")
    return verify_chain(*(run_dir / name for name in directories))


def _state(run_dir: Path) -> RunState:
    state = RunState.load(run_dir)
    if state is None:
        raise InputError(f"{run_dir} does not hold a run ({RUN_NAME} is missing).")
    return state
