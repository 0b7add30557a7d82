"""Settings given on the command line, `--set quantize.bits=8`: a dotted path into the recipe, and a value as in YAML."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from qtk.errors import InputError, listing
from qtk.recipes.said import Loc, Said, Tree, ValueOrigin, merged, said_by
from qtk.recipes.variables import closest
from qtk.shipped import model_at, unknown_setting

VARIABLES = "variables"


@dataclass(frozen=True)
class Setting:
    """One --set: the path of what is set, and its value with its origin."""

    loc: Loc
    value: Tree


def read_settings(texts: Sequence[str], model: type[BaseModel], variables: Iterable[str]) -> list[Setting]:
    """The settings in their order. InputError with every one that is not KEY=VALUE, whose key `model` or the variables do
    not have (with the closest name), or whose value is not YAML."""
    settings, complaints, known = [], [], list(variables)
    for text in texts:
        try:
            settings.append(_setting(text, model, known))
        except ValueError as error:
            complaints.append(f"--set {text}: {error}")
    if complaints:
        raise InputError(f"What --set is given does not fit a recipe:\n{listing(complaints)}")
    return settings


def with_setting(tree: Tree, setting: Setting) -> Tree:
    """The tree with the setting in it: in an entry of a list, or one behind the last, where its path has a number. InputError for
    a number beyond that."""
    try:
        return _placed(tree, setting.loc, setting.value)
    except ValueError as error:
        origin = next(iter(_origins(setting.value)), None)
        raise InputError(f"{'--set' if origin is None else origin.name}: {error}") from None


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of everything that can be set, sections left out; entries of a list by the number 0."""
    for name, field in model.model_fields.items():
        inner = model_at(model, (name,))
        place = f"{path}{name}"
        if inner is None:
            yield place, field
        else:
            yield from keys(inner, f"{place}.0." if is_list(field.annotation) else f"{place}.")


def words(annotation: Any) -> list[str]:
    """The words that a field takes, where it takes only some: true and false, or those of a choice."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for kind in get_args(annotation) for word in words(kind)]
    return []


def is_list(annotation: Any) -> bool:
    """Whether a field holds a list."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_list(kind) for kind in get_args(annotation))
    return get_origin(annotation) is tuple


def _setting(text: str, model: type[BaseModel], variables: list[str]) -> Setting:
    key, equals, raw = text.partition("=")
    parts = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    if not equals or "" in parts:
        raise ValueError("write it as KEY=VALUE, such as quantize.bits=8")
    # A path among the value begins where the command was given.
    origin = ValueOrigin(f"--set {text}", Path())
    if parts[0] == VARIABLES:
        if len(parts) < 2 or parts[1] not in variables:
            wanted = str(parts[1]) if len(parts) > 1 else ""
            raise ValueError(f"there is no variable {wanted!r}{closest(wanted, variables)}")
        return Setting(parts, said_by(origin, _yaml(raw)))
    return Setting(parts, said_by(origin, _value(raw, _annotation(parts, model))))


def _annotation(parts: Loc, model: type[BaseModel]) -> Any:
    """The type of what is at a path. ValueError for a path that the model does not have."""
    kind: Any = model
    for number, part in enumerate(parts):
        before = ".".join(str(it) for it in parts[:number])
        if isinstance(part, int):
            if not is_list(kind):
                raise ValueError(f"{before} is not a list")
            kind = _member(kind)
            continue
        section = _section(kind)
        if section is None:
            raise ValueError(f"{before} has no settings below it")
        if is_list(kind):
            raise ValueError(f"{before} is a list: say which entry, {before}.0.{part}")
        if part not in section.model_fields:
            raise ValueError(unknown_setting(parts[: number + 1], model))
        kind = section.model_fields[part].annotation
    return kind


def _member(kind: Any) -> Any:
    found = [it for it in (kind, *get_args(kind)) if get_origin(it) is tuple]
    return get_args(found[0])[0]


def _section(kind: Any) -> type[BaseModel] | None:
    inner = [kind, *get_args(kind), *([_member(kind)] if is_list(kind) else [])]
    return next((it for it in inner if isinstance(it, type) and issubclass(it, BaseModel)), None)


def _value(raw: str, annotation: Any) -> Any:
    """The value as YAML reads it; as the text it is, where only that has the type that is wanted ("8" for a choice of texts,
    "a: b" for a description)."""
    try:
        value = _yaml(raw)
    except ValueError:
        if not _accepts(annotation, raw):
            raise
        return raw
    plainly_wrong = not isinstance(value, str | None) and not _accepts(annotation, value)
    return raw if plainly_wrong and _accepts(annotation, raw) else value


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _yaml(raw: str) -> Any:
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(f"{raw!r} is not YAML: {str(error).splitlines()[0]}") from None


def _placed(tree: Tree, loc: Loc, value: Tree) -> Tree:
    if not loc:
        return merged(tree, value)
    part, rest = loc[0], loc[1:]
    if isinstance(part, str):
        inside = tree if isinstance(tree, dict) else {}
        return {**inside, part: _placed(inside.get(part, {}), rest, value)}
    entries = tree if isinstance(tree, list) else []
    if part > len(entries):
        raise ValueError(f"the list has {len(entries)} entries, so the next one is number {len(entries)}")
    placed = _placed(entries[part] if part < len(entries) else {}, rest, value)
    return [*entries[:part], placed, *entries[part + 1 :]]


def _origins(tree: Tree) -> Iterator[ValueOrigin]:
    if isinstance(tree, Said):
        yield tree.origin
    else:
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _origins(value)
