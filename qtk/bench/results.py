"""Result files: one JSON object each, checked to be writable before the work and put in place in one step after it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from qtk.errors import InputError


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
