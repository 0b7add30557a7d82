"""What a run has left: its steps, the directories a report is written from, and the check of every step's chain.

Reads qtk-run.json and manifests only, so that `qtk inspect` and `qtk verify` load nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.checkpoint.manifest import MANIFEST_NAME, Finding, made_in, output_files, verify_chain
from qtk.errors import GateFailed, InputError, listing
from qtk.recipes.state import RUN_NAME, RunState
from qtk.release.bundle_check import verify_bundle
from qtk.release.bundle_record import is_bundle


class StepSummary(BaseModel):
    """A step as its run records it. bytes: of all files in its directory, 0 where they are gone."""

    model_config = ConfigDict(frozen=True)
    step: str
    stage: str
    directory: str
    status: Literal["ok", "changed or missing"]
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
                status="ok" if state.stands(run_dir, name) else "changed or missing",
                seconds=record.seconds,
                bytes=sum(path.stat().st_size for path in output_files(run_dir / record.directory)),
            )
            for name, record in state.steps.items()
        ),
    )


def measured_directories(run_dir: Path) -> list[Path]:
    """The directories of the run's steps, in their order, except the report's: what a report is written from."""
    return [run_dir / record.directory for record in _state(run_dir).steps.values() if record.stage != "report"]


def report_page(run_dir: Path) -> Path | None:
    """The page of the run's report; None where the run has none."""
    steps = _state(run_dir).steps.values()
    pages = (run_dir / record.directory / "report.html" for record in steps if record.stage == "report")
    return next((page for page in pages if page.is_file()), None)


def verify_run(run_dir: Path) -> list[Finding]:
    """The findings of every step's chain. InputError where no run was begun, or a step's directory is gone."""
    return verify_chain(*_require_directories(run_dir))


def verify_path(path: Path, key: Path | None = None) -> list[Finding]:
    """The findings of whatever qtk made: a directory with a manifest, a file in one, a run, a bundle, or a folder of these.

    key: the public key that must have signed the bundle `path`. InputError when the path does not exist, or holds nothing of
    the kind; GateFailed for a signature that does not verify, and for anything but a bundle where a key is given.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir() and is_bundle(path):
        return verify_bundle(path, key)
    if key is not None:
        raise GateFailed(
            f"{path} is not a signed bundle: only bundles are signed (`qtk bundle RUN -o DIR --sign KEY`)."
        )
    if is_run(path):
        return verify_run(path)
    if path.is_file() and (path.absolute().parent / MANIFEST_NAME).is_file():
        path = path.absolute().parent
    if (path / MANIFEST_NAME).is_file():
        return verify_chain(path)
    runs = [run.parent for run in sorted(path.glob(f"*/{RUN_NAME}"))]
    made = [directory for folder in (path, *runs) for directory in made_in(folder)]
    bundles = [directory for directory in made if is_bundle(directory)]
    directories = [directory for directory in made if directory not in bundles]
    if not made:
        raise InputError(
            f"{path} has no {MANIFEST_NAME}, and no directory in it has: qtk did not write it, or not to its end."
        )
    for run in runs:
        _require_directories(run)
    return [*verify_chain(*directories), *(finding for bundle in bundles for finding in verify_bundle(bundle))]


def _require_directories(run_dir: Path) -> list[Path]:
    """The directories of the run's steps. InputError where no run was begun, or one of them is gone."""
    directories = [run_dir / record.directory for record in _state(run_dir).steps.values()]
    if absent := [directory.name for directory in directories if not directory.is_dir()]:
        raise InputError(f"{run_dir} lacks directories that its steps wrote:\n{listing(absent)}")
    return directories


def _state(run_dir: Path) -> RunState:
    state = RunState.load(run_dir)
    if state is None:
        raise InputError(f"{run_dir} does not hold a run ({RUN_NAME} is missing).")
    return state
