"""JSON objects in the files beside a model, read with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtk.bounded.files import read_bounded
from qtk.bounded.parsing import parse_bounded_json
from qtk.errors import InputError


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from bytes; `path` is named in errors. InputError with line and column for what does not parse."""
    try:
        value = parse_bounded_json(raw)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file. InputError when the file cannot be read as one."""
    return parse_json(read_bounded(path), path) if path.is_file() else {}
