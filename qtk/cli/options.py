"""Command-line options generated from a frozen options model, so that CLI, recipe and manifest say the same."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError

from qtk.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., Any])


def options_from(model: type[BaseModel], *, skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """A decorator that adds one option a field: name, type, default and help (the field's description) from the model.

    bool -> --flag/--no-flag (or what the field's json_schema_extra calls "off"), Literal -> a choice, tuple -> a repeatable option.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip:
                command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: Any) -> Callable[[Command], Command]:
    flag = "--" + name.replace("_", "-")
    kind, repeated = _plain(field.annotation)
    default = field.get_default(call_default_factory=True)
    settings: dict[str, Any] = {
        "help": field.description,
        "default": default,
        "show_default": default not in (None, (), ""),
    }
    if kind is bool:
        off = (field.json_schema_extra or {}).get("off", f"no-{flag[2:]}")
        return click.option(f"{flag}/--{off}", name, **settings)
    if get_origin(kind) is Literal:
        return click.option(
            flag, name, type=click.Choice([str(v) for v in get_args(kind)]), **{**settings, "default": _str(default)}
        )
    settings["type"] = {int: int, float: float, Path: click.Path(path_type=Path)}.get(kind, str)
    return click.option(flag, name, multiple=repeated, **settings)


def _str(value: Any) -> Any:
    return None if value is None else str(value)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """The annotation without `| None` and tuple[...]; whether it repeats."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        # int | Literal["auto"] and the like are given as text and parsed by the model.
        return _plain(inner[0]) if len(inner) == 1 else (str, False)
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    return annotation, False


def build(model: type[Model], values: dict[str, Any]) -> Model:
    """The options model from parsed values; InputError with every complaint of the model in one message."""
    require_valid(values, model)
    return model(**_of(model, values))


def require_valid(values: dict[str, Any], *models: type[BaseModel]) -> None:
    """InputError with every complaint of every model: for a command that builds several, before the first of them."""
    lines = []
    for model in models:
        try:
            model(**_of(model, values))
        except ValidationError as error:
            lines += [
                f"--{'-'.join(str(p) for p in e['loc']).replace('_', '-')}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            ]
    if lines:
        raise InputError("The options are wrong: " + "; ".join(lines))


def _of(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in model.model_fields}
