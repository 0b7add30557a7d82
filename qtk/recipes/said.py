"""The content of recipes' files with, at every value, who said it: what is merged, filled in and told from before it is a
recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Loc: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class ValueOrigin:
    """Who said a value: the name of a file or an option, and the directory that its relative paths begin in."""

    name: str
    directory: Path


@dataclass(frozen=True)
class Said:
    """A value that holds no others (text, a number, true or false, null), and who said it."""

    value: Any
    origin: ValueOrigin


# A value and its origin, or a mapping or list of these.
Tree: TypeAlias = "dict[str, Tree] | list[Tree] | Said"


def said_by(origin: ValueOrigin, content: Any) -> Tree:
    """Parsed YAML as a tree whose every value has this origin."""
    if isinstance(content, dict):
        return {key: said_by(origin, value) for key, value in content.items()}
    if isinstance(content, list):
        return [said_by(origin, value) for value in content]
    return Said(content, origin)


def plain(tree: Tree) -> Any:
    """The content without its origins, as YAML would be parsed."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.value


def merged(below: Tree, above: Tree) -> Tree:
    """Mappings are merged key by key; anything else of `above` replaces what is `below`."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    both = {key: merged(below[key], value) if key in below else value for key, value in above.items()}
    return {**below, **both}


def without_nulls(tree: Tree) -> Tree:
    """The mappings without the keys whose value is null: in a recipe, null takes a setting or a stage away."""
    if isinstance(tree, list):
        return [without_nulls(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {key: value for key, value in tree.items() if not (isinstance(value, Said) and value.value is None)}
    return {key: without_nulls(value) for key, value in kept.items()}


def mapped(tree: Tree, change: Callable[[Loc, Said], Tree], loc: Loc = ()) -> Tree:
    """The tree with every value replaced by change(its path, the value)."""
    if isinstance(tree, dict):
        return {key: mapped(value, change, (*loc, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [mapped(value, change, (*loc, number)) for number, value in enumerate(tree)]
    return change(loc, tree)


def values(tree: Tree, loc: Loc = ()) -> Iterator[tuple[Loc, Said]]:
    """(path, value) of every value, in their order."""
    if isinstance(tree, Said):
        yield loc, tree
        return
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in parts:
        yield from values(value, (*loc, key))


def origin_at(tree: Tree, loc: Sequence[str | int]) -> ValueOrigin | None:
    """Who said the value at a path, or the first value below it; None where there is nothing."""
    for part in loc:
        if isinstance(tree, dict) and part in tree:
            tree = tree[str(part)]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            break
    return next((said.origin for _, said in values(tree)), None)
