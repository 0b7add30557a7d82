"""A recipe's content as YAML for people: sections as blocks, their lists and values on one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

_UNLIMITED = 1_000_000


def recipe_yaml(content: Mapping[str, Any], comment: Callable[[str], str] = lambda path: "") -> str:
    """The content as YAML, in its order. comment: what is written behind the value at a dotted path."""
    return "".join(f"{line}\n" for line in _lines(content, "", "", comment))


def _lines(content: Mapping[str, Any], indent: str, path: str, comment: Callable[[str], str]) -> Iterator[str]:
    for key, value in content.items():
        place, name = f"{path}{key}", _flow(key)
        if isinstance(value, dict) and value:
            if not indent:
                yield ""
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ", f"{place}.", comment)
        elif _is_list_of_mappings(value):
            yield from ([""] if not indent else []) + [f"{indent}{name}:"]
            for number, entry in enumerate(value):
                yield f"{indent}  - {_flow(entry)}{_behind(comment, f'{place}.{number}')}"
        else:
            yield f"{indent}{name}: {_flow(value)}{_behind(comment, place)}"


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _behind(comment: Callable[[str], str], place: str) -> str:
    said = comment(place)
    return f"  # {said}" if said else ""


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=_UNLIMITED, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
