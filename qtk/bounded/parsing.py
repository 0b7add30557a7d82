"""JSON and YAML of files that nobody vouches for: of bounded depth and size, with no key twice, every number finite."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qtk.bounded.files import read_bounded
from qtk.errors import InputError, listing

Model = TypeVar("Model", bound=BaseModel)

_DEPTH = 64  # levels of nesting; recipes and configs have fewer than ten
# YAML is parsed at about 100 kB a second. The longest file that travels with qtk has 9 kB.
_YAML_LIMIT = 256_000
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
_YAML_NODES = 50_000  # values, those behind an alias counted each time


class _Unfit(ValueError):
    """Why a document that parses is not taken."""


def parse_bounded_json(raw: bytes | str) -> Any:
    """A JSON value. ValueError, with line and column where it does not parse, and for one that is nested too deep or says a key
    twice."""
    try:
        value = json.loads(raw, object_pairs_hook=_object)
    except RecursionError:
        raise _Unfit("it is nested too deep") from None
    _require_shallow(value)
    _require_text(raw, value)
    return value


def _require_text(raw: bytes | str, value: Any) -> None:
    """ValueError for half of a pair of surrogates, which JSON can spell and no text holds: whoever writes it on would fail."""
    if not _SURROGATE.search(raw if isinstance(raw, str) else raw.decode(errors="replace")):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Unfit("it holds half of a letter (a lone surrogate)") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Unfit(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _require_shallow(value: Any) -> None:
    level: Iterable[Any] = [value]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise _Unfit(f"it is nested more than {_DEPTH} levels deep")


class _OwnLoader(yaml.SafeLoader):
    """The safe loader, which refuses what grows when it is read: aliases of aliases, deep nesting; and a key that is there twice.
    It stops at the bounds: the scanner looks at every open bracket again with each token, which takes seconds for thousands."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed = 0

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level > _DEPTH:
            raise _too_deep(self.line)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        if self._composed > _YAML_NODES:
            raise _too_many()
        return super().compose_node(parent, index)

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return self.construct_document(node)


def _too_deep(line: int) -> _Unfit:
    return _Unfit(f"it is nested more than {_DEPTH} levels deep, at line {line + 1}")


def _too_many() -> _Unfit:
    return _Unfit(f"it holds more than {_YAML_NODES} values, with what its aliases stand for")


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values stand below a node when each alias is written out. ValueError for too many, for a node that holds itself,
    for a key that is there twice, and for half of a letter, as in JSON."""
    if id(node) in known:
        if not known[id(node)]:
            raise _Unfit(f"the value at line {node.start_mark.line + 1} holds itself")
        return known[id(node)]
    if depth > _DEPTH:
        raise _too_deep(node.start_mark.line)
    if isinstance(node, yaml.ScalarNode) and _HALF.search(node.value):
        raise _Unfit(f"the value at line {node.start_mark.line + 1} holds half of a letter (a lone surrogate)")
    known[id(node)] = 0  # not counted yet: whoever meets it here is inside it
    total = 1
    for child in _children(node):
        total += _count(child, known, depth + 1)
        if total > _YAML_NODES:
            raise _too_many()
    known[id(node)] = total
    return total


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise _Unfit(f"the key {key.value!r} is there twice, again at line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
    return [child for pair in node.value for child in pair]


def parse_yaml(text: str) -> Any:
    """The value that a YAML text says (safe loader). ValueError for what does not parse, and for what the bounds refuse."""
    if len(text) > _YAML_LIMIT:
        raise _Unfit(f"it is longer than {_YAML_LIMIT} characters")
    try:
        return yaml.load(text, Loader=_OwnLoader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise _Unfit("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise _Unfit(str(error)) from None
    except (
        OverflowError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # of numbers, dates and keys that YAML alone allows
        raise _Unfit(f"a value cannot be read ({error})") from None


def load_yaml(path: Path) -> Any:
    """The value in a YAML file. InputError names the file and the line that does not parse."""
    try:
        return parse_yaml(read_bounded(path, _YAML_LIMIT).decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None


def read_model(path: Path, model: type[Model], complaint: str) -> Model:
    """The JSON file as `model`. FileNotFoundError where there is none; InputError, beginning with the path and `complaint`, lists
    every offending field."""
    try:
        return model.model_validate_json(read_bounded(path))
    except ValidationError as error:
        raise InputError(f"{path} {complaint}:\n{listing(complaints(error))}") from None


def complaints(error: ValidationError) -> list[str]:
    """What is wrong with each field, by its path in the file."""
    rows = ((".".join(map(str, it["loc"])), it["msg"].removeprefix("Value error, ")) for it in error.errors())
    return [f"{where}: {said}" if where else said for where, said in rows]
