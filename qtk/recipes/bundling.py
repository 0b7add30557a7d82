"""What of a run, or of any directory that qtk wrote, goes into a bundle."""

from __future__ import annotations

from pathlib import Path

from qtk.checkpoint.manifest import MANIFEST_NAME, read_manifest
from qtk.errors import InputError
from qtk.recipes.finished_run import is_run, measured_directories
from qtk.recipes.schema import RECIPE_COPY
from qtk.release.bundle import BundleSources
from qtk.release.material import reportable_directories


def bundle_sources(path: Path) -> BundleSources:
    """The directories of a run, of a folder of outputs, or the one that `path` is; and the report, verdict and recipe beside them.

    InputError where there is nothing that qtk wrote, or a step's directory is gone.
    """
    if (path / MANIFEST_NAME).is_file():
        return BundleSources((path,))
    directories = measured_directories(path) if is_run(path) else reportable_directories(path)
    if absent := [directory.name for directory in directories if not (directory / MANIFEST_NAME).is_file()]:
        raise InputError(f"{path} lacks what its steps wrote: {', '.join(absent)}. `qtk run` makes it again.")
    recipe = path / RECIPE_COPY
    return BundleSources(
        tuple(directories),
        report=_of_kind(path / "report", "report"),
        gate=_of_kind(path / "gate", "gate"),
        recipe=recipe if is_run(path) and recipe.is_file() else None,
    )


def _of_kind(directory: Path, kind: str) -> Path | None:
    there = (directory / MANIFEST_NAME).is_file() and read_manifest(directory).kind == kind
    return directory if there else None
