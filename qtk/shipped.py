"""Finds the YAML that travels with qtk (engines/, recipes/, bench/) in a checkout, an editable install and a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qtk.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def shipped_directory(room: str) -> Path:
    """The directory of shipped data called `room` ("engines", "recipes" or "bench").

    A wheel carries it inside the package; a checkout and an editable install have it beside the package.
    """
    inside = _PACKAGE / "shipped_data" / room
    return inside if inside.is_dir() else _PACKAGE.parent / room


def shipped_names(room: str) -> list[str]:
    """Names (without .yaml) of the files shipped in `room`, sorted."""
    return sorted(path.stem for path in shipped_directory(room).glob("*.yaml"))


def load_yaml(path: Path) -> Any:
    """The parsed content of a YAML file (safe loader). InputError names the file and the line that does not parse."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
