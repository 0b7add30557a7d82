"""Command-line options generated from a frozen options model, so that CLI, recipe and manifest say the same."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError

from qtk.cli.known_names import complete_setting, field_completer
from qtk.errors import InputError

START_AGAIN = "Replace an existing output directory once the new one is complete; start again where a stopped run left unfinished work."
Model = TypeVar("Model", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., Any])


def options_from(model: type[BaseModel], *, skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """A decorator that adds one option a field: name, type, default and help (the field's description) from the model.

    bool -> --flag/--no-flag, Literal -> a choice, tuple -> a repeatable option. A field's json_schema_extra may say more:
    "off" names the other half of a flag; "was" is the field's former name, which is still taken (`old_spelling`), and
    "was_values" maps the values of that time to those of today; "names" and "also" say what a shell completes
    (`field_completer`).
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip:
                command = _option(name, field)(command)
        return command

    return decorate


def output_options(
    directory: str = "Directory to write.",
    *,
    required: bool = True,
    overwrite: str = "Replace an existing output directory once the new one is complete.",
) -> Callable[[Command], Command]:
    """A decorator that adds -o/--output DIRECTORY (parameter `out`) and --overwrite, with these help texts."""

    def decorate(command: Command) -> Command:
        command = click.option("--overwrite", is_flag=True, help=overwrite)(command)
        place = click.Path(path_type=Path)
        return click.option(
            "-o", "--output", "out", type=place, metavar="DIRECTORY", required=required, help=directory
        )(command)

    return decorate


set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_setting,
    help="Change a setting of the recipe: quantize.bits=8, adapters=[a,b], gates.0.at_most=2, variables.gpu=l4; "
    "null takes it away. Repeatable.",
)


def ray_option(what: str) -> Callable[[Command], Command]:
    """--ray, by which a command gives `what` to a cluster."""
    help_text = f"Give the {what} to a Ray cluster: the one that this machine belongs to, or the one at an address."
    return click.option("--ray", metavar="auto|ADDRESS", help=help_text)


def old_spelling(
    old: str, new: str, *, values: Mapping[str, str] | None = None, flag: bool = False
) -> Callable[[Command], Command]:
    """A decorator for an option that was renamed: `old` is still taken for `new`, and stderr says how to write it now.

    old, new: with their dashes. values: what a value of that time is called today. flag: the option takes no value.
    Neither --help nor docs/cli.md shows the old spelling. Where both are given, `new` counts.
    """

    def pass_on(context: click.Context, _: click.Parameter, given: tuple[str, ...] | bool) -> None:
        if not given:
            return
        option = next(option for option in context.command.params if new in [*option.opts, *option.secondary_opts])
        words = () if isinstance(given, bool) else tuple((values or {}).get(word, word) for word in given)
        click.echo(f"qtk: {old} is now {' '.join(f'{new} {word}' for word in words) or new}.", err=True)
        value: object = new in option.opts if isinstance(given, bool) else words if option.multiple else words[-1]
        context.default_map = {**(context.default_map or {}), str(option.name): value}

    settings: dict[str, Any] = {"is_flag": True} if flag else {"multiple": True}
    return click.option(
        old, _old_name(old), hidden=True, is_eager=True, expose_value=False, callback=pass_on, **settings
    )


def gone_option(old: str, advice: str) -> Callable[[Command], Command]:
    """A decorator for an option that no longer exists: `old`, with or without a value, is answered with `advice`.

    advice: a sentence that says what to write instead ("Use --chat-format none.").
    """

    def refuse(context: click.Context, _: click.Parameter, given: str | None) -> None:
        if given is not None:
            raise click.UsageError(f"There is no option {old} any more. {advice}", context)

    return click.option(
        old,
        _old_name(old),
        hidden=True,
        is_eager=True,
        expose_value=False,
        callback=refuse,
        is_flag=False,
        flag_value="",
    )


def _old_name(old: str) -> str:
    """The name of a hidden parameter, which no parameter of today may share."""
    return "old_" + old.strip("-").replace("-", "_")


def _option(name: str, field: Any) -> Callable[[Command], Command]:
    more = field.json_schema_extra or {}
    decorate = _current_option(name, field, more)
    if "was" not in more:
        return decorate
    former = old_spelling(
        _flag(more["was"]), _flag(name), values=more.get("was_values"), flag=_plain(field.annotation)[0] is bool
    )
    return lambda command: decorate(former(command))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _current_option(name: str, field: Any, more: Mapping[str, Any]) -> Callable[[Command], Command]:
    flag = _flag(name)
    kind, repeated = _plain(field.annotation)
    default = field.get_default(call_default_factory=True)
    settings: dict[str, Any] = {
        "help": field.description,
        "default": default,
        "show_default": default not in (None, (), "", "default"),  # a value called default says so itself
        "shell_complete": field_completer(more),
    }
    if kind is bool:
        off = more.get("off", f"no-{flag[2:]}")
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
