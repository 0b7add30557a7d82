"""Variables of recipes: `variables:` names values once, and ${name} stands for them anywhere else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from qtk.errors import InputError
from qtk.recipes.said import Loc, Said, Tree, mapped, values

# $${ is how a plain ${ is written.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[^{}]*)\}|\$\{")


def filled_in(tree: Tree, variables: Mapping[str, Tree]) -> Tree:
    """The tree with its references replaced. A text that is one reference becomes the variable's value, whatever its type;
    within a longer text the value is written as YAML writes it.

    A value keeps the origin of the variable that it begins with, so that a path in a variable stays relative to the file
    that says it. InputError for a variable that nobody defines, that refers to itself, or that is no text inside a text.
    """
    return mapped(tree, lambda loc, said: _filled(said, _where(loc), variables, ()))


def names_used(trees: Iterable[Tree]) -> set[str]:
    """The names of the variables that are referred to."""
    texts = [said.value for tree in trees for _, said in values(tree) if isinstance(said.value, str)]
    return {match["name"] for text in texts for match in _REFERENCE.finditer(text) if match["name"] is not None}


def closest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" or the names there are, for the end of a sentence."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(known)}" if known else "; there are none"


def _filled(said: Said, where: str, variables: Mapping[str, Tree], inside: tuple[str, ...]) -> Tree:
    if not isinstance(said.value, str) or "${" not in said.value:
        return said

    def value_of(name: str) -> Tree:
        if name not in variables:
            raise InputError(f"{where} in {said.origin.name}: there is no variable {name!r}{closest(name, variables)}")
        if name in inside:
            raise InputError(f"variables.{name} refers to itself: {' -> '.join((*inside, name))}.")
        found = variables[name]
        return mapped(found, lambda loc, it: _filled(it, f"variables.{name}", variables, (*inside, name)))

    whole = _REFERENCE.fullmatch(said.value)
    if whole is not None and whole["name"] is not None:
        return value_of(whole["name"])
    origin = said.origin

    def text_of(match: re.Match[str]) -> str:
        nonlocal origin
        if match.group() == "$${":
            return "${"
        if match["name"] is None:
            raise InputError(
                f"{where} in {said.origin.name}: ${{ without a }} in {said.value!r}; $${{ stands for a plain ${{."
            )
        value = value_of(match["name"])
        if not isinstance(value, Said):
            raise InputError(
                f"{where} in {said.origin.name}: the variable {match['name']} is a list or mapping, and {said.value!r} is a text."
            )
        if match.start() == 0:
            origin = value.origin
        return _as_text(value.value)

    text = _REFERENCE.sub(text_of, said.value)
    return Said(text, origin)


def _as_text(value: Any) -> str:
    """A value as YAML writes it on one line: true, 4, a text without quotes."""
    return value if isinstance(value, str) else yaml.safe_dump(value).removesuffix("...\n").strip()


def _where(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)
