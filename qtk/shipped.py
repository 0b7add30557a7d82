"""Finds and reads the YAML that travels with qtk (gpus/, recipes/, bench/) in a checkout, an editable install and a wheel."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from qtk.errors import InputError, listing

Model = TypeVar("Model", bound=BaseModel)

_PACKAGE = Path(__file__).resolve().parent
_YAML_ENDINGS = (".yaml", ".yml")


def shipped_directory(room: str) -> Path:
    """The directory of shipped data called `room` ("gpus", "recipes", "bench/suites", ...).

    A wheel carries it inside the package; a checkout and an editable install have it beside the package.
    """
    inside = _PACKAGE / "shipped_data" / room
    return inside if inside.is_dir() else _PACKAGE.parent / room


def shipped_names(room: str) -> list[str]:
    """Names (without .yaml) of the files shipped in `room`, sorted."""
    return sorted(path.stem for path in shipped_directory(room).glob("*.yaml"))


def find_yaml(room: str, text: str, noun: str) -> Path:
    """The file that `text` means: one that ships in `room`, by its name, or any other, by its path.

    noun: what the file describes ("suite"), for the InputError that lists the names when `text` is neither.
    """
    names = shipped_names(room)
    if text in names:
        return shipped_directory(room) / f"{text}.yaml"
    path = Path(text)
    if path.suffix in _YAML_ENDINGS or path.is_file():
        return path
    raise InputError(f"There is no {noun} {text!r}. Give one of {', '.join(names)}, or a YAML file.")


def read_yaml(path: Path, model: type[Model], noun: str, **more: str) -> Model:
    """The content of a YAML file as `model`; more: fields that the file itself does not hold, such as its own name.

    InputError lists every offending field by its path in the file."""
    content = load_yaml(path)
    return validated(content | more if isinstance(content, dict) else content, model, f"{path} is not a valid {noun}")


def validated(
    content: Any, model: type[Model], complaint: str, said_in: Callable[[Sequence[str | int]], str] = lambda loc: ""
) -> Model:
    """`content` as `model`. InputError begins with `complaint` and lists every offending field by its path, with the closest
    name of one that is not known; said_in: where the value at a path comes from, for a reader of several files."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        complaints = [f"{_complaint(it, model)}{said_in(it['loc'])}" for it in error.errors()]
        raise InputError(f"{complaint}:\n{listing(complaints)}") from None


def load_yaml(path: Path) -> Any:
    """The parsed content of a YAML file (safe loader). InputError names the file and the line that does not parse."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, a number or date out of range
        raise InputError(f"{path} is not valid YAML: {error}") from None


def model_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model of the section at `loc`, the names of fields from `model` on; the number of a list's entry stands for its
    model. None where there is no such section."""
    for name in loc:
        if isinstance(name, int):
            continue
        field = model.model_fields.get(name)
        inner = [] if field is None else [field.annotation, *get_args(field.annotation)]
        found = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def unknown_setting(loc: Sequence[str | int], model: type[BaseModel]) -> str:
    """What is said of a setting that `model` does not know: what it is called now, or the closest name."""
    section, former = model_at(model, loc[:-1]), str(loc[-1])
    fields = {} if section is None else section.model_fields
    for name, field in fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("was") == former:
            return f"is called {name} now"
    close = difflib.get_close_matches(former, fields, n=1)
    return f"no such setting; did you mean {close[0]}?" if close else "no such setting"


def _complaint(error: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: {unknown_setting(error['loc'], model)}"
    said = "A list is needed: [a, b]" if error["type"] == "tuple_type" else error["msg"].removeprefix("Value error, ")
    message = f"{where}: {said}".removeprefix(": ")
    return message if error["type"] == "missing" else f"{message} (given: {error['input']!r})"
