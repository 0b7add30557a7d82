"""Result files: one JSON object each, checked to be writable before the work and put in place in one step after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from qtk.checkpoint.manifest import ManifestRecorder, output_files
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError
from qtk.machine import PeakMemory


def require_writable(path: Path, *, overwrite: bool = False) -> None:
    """InputError when `path` exists and may not be replaced, or lies in no directory: before minutes are spent on it."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; a file name is needed for the result.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already. Give another -o, or --overwrite.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a directory, so {path.name} cannot be written there.")


def write_result(result: BaseModel, path: Path) -> None:
    """Writes the result as indented JSON; the file appears under its name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as stream:
            stream.write(result.model_dump_json(indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


RESULT_NAME = "result.json"
Result = TypeVar("Result", bound=BaseModel)


def measure_into(
    out: Path,
    kind: str,
    options: BaseModel,
    inputs: Mapping[str, Path],
    measure: Callable[[], Result],
    *,
    overwrite: bool = False,
) -> Result:
    """Runs `measure`, writes its result as `out`/result.json with a manifest, and returns it.

    inputs: role -> directory written by qtk or model directory, whose files are digested. InputError for an `out` that is
    named like a file.
    """
    if out.suffix == ".json":
        raise InputError(
            f"{out}: a directory is written, with the result in {RESULT_NAME}. Give -o {out.with_suffix('')}."
        )
    recorder = ManifestRecorder(kind, options.model_dump(mode="json"))
    staged = staged_directory(out, overwrite=overwrite, inputs=inputs.values())
    with PeakMemory() as memory, staged as directory:
        for role, path in inputs.items():
            recorder.add_input(role, path, output_files(path))
        result = measure()
        write_result(result, directory / RESULT_NAME)
        recorder.write(directory, out, memory.peak_bytes)
    return result
