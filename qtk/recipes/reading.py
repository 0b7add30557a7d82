"""Reads recipes: what `extends` inherits, what --set changes, what variables stand for, and which paths are meant.

A recipe's file may name another recipe that it extends. Mappings are merged key by key, the extending file's values count,
anything else is replaced as a whole, and null takes away what was inherited. Every value remembers the file that says it:
its relative paths begin there, and errors name it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.errors import InputError, listing
from qtk.recipes.said import (
    Loc,
    Said,
    Tree,
    ValueOrigin,
    mapped,
    merged,
    origin_at,
    plain,
    said_by,
    values,
    without_nulls,
)
from qtk.recipes.schema import Recipe, RecipeText, contradictions, is_place
from qtk.recipes.settings import VARIABLES, read_settings, with_setting
from qtk.recipes.variables import closest, filled_in, names_used
from qtk.shipped import find_yaml, load_yaml, shipped_directory, shipped_names, validated

_ROOM, _EXTENDS = "recipes", "extends"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe's file, and the directory that its relative paths begin in: the user's own for a recipe that travels with qtk,
    for any other the one that the file lies in."""

    path: Path
    directory: Path


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with everything put in. tree: its content with origins, its paths as the files say them."""

    recipe: Recipe
    file: RecipeFile
    tree: Tree

    def content(self, directory: Path | None = None) -> dict[str, Any]:
        """The content as YAML would be parsed, its sections in the order of the schema; relative paths begin in `directory`,
        by default the recipe's own."""
        found = plain(_with_paths_from(self.tree, directory or self.file.directory))
        return {name: found[name] for name in Recipe.model_fields if name in found}

    def origins(self) -> dict[str, str]:
        """dotted path -> the file or option that says the value."""
        return {".".join(map(str, loc)): said.origin.name for loc, said in values(self.tree)}


def find_recipe(text: str) -> RecipeFile:
    """The recipe that `text` names: by a path, or by the name of one that travels with qtk. InputError for neither."""
    path = find_yaml(_ROOM, text, "recipe")
    shipped = path.parent == shipped_directory(_ROOM) and text in shipped_names(_ROOM)
    return RecipeFile(path, Path() if shipped else path.parent)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. InputError with every offending field, by its path in the file."""
    return resolve_recipe(path).recipe


def resolve_recipe(file: RecipeFile | Path, settings: Sequence[str] = ()) -> ResolvedRecipe:
    """The recipe in a file, after what it extends and with settings (KEY=VALUE, as of --set) put in.

    InputError with every offending field, who said it, and the closest name of one that is not known; for a circle of
    recipes; for variables that nobody defines or uses.
    """
    file = file if isinstance(file, RecipeFile) else RecipeFile(file, file.parent)
    layers = _chain(file, ())
    if not isinstance(layers[-1], dict):
        validated(plain(layers[-1]), Recipe, f"{file.path} is not a valid recipe")
    tree: Tree = {}
    for layer in layers:
        tree = merged(tree, layer)
    declared = _variables(tree)
    for setting in read_settings(settings, RecipeText, declared):
        tree = with_setting(tree, setting)
    assert isinstance(tree, dict)
    variables = _variables(tree)
    used = names_used([*layers, tree])
    tree = without_nulls(filled_in({key: value for key, value in tree.items() if key != VARIABLES}, variables))
    _require_used(variables, used)
    recipe = _validated(tree, file, several=len(layers) > 1)
    return ResolvedRecipe(recipe, file, tree)


def _chain(file: RecipeFile, after: tuple[Path, ...]) -> list[Tree]:
    """The contents of the files that a recipe is made of, the extending ones after those that they extend."""
    path = file.path.resolve()
    if path in after:
        circle = " extends ".join(it.name for it in (*after[after.index(path) :], path))
        raise InputError(f"Recipes extend each other in a circle: {circle}.")
    content = load_yaml(file.path)
    if not isinstance(content, dict):
        if after:
            raise InputError(f"{file.path}, which {after[-1].name} extends, is not a recipe: it holds no settings.")
        return [said_by(ValueOrigin(file.path.name, file.directory), content)]
    base = content.pop(_EXTENDS, None)
    layer = said_by(ValueOrigin(file.path.name, file.directory), content)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise InputError(f"{file.path}: extends takes the name or the path of one recipe (given: {base!r}).")
    return [*_chain(_base(base, file), (*after, path)), layer]


def _base(text: str, file: RecipeFile) -> RecipeFile:
    """The recipe that a file extends: one that travels with qtk, by its name, or a path that begins beside the file.

    A recipe that travels with qtk has no place of its own, so the relative paths that are inherited from it begin where the
    extending recipe's do.
    """
    if text in shipped_names(_ROOM):
        return RecipeFile(shipped_directory(_ROOM) / f"{text}.yaml", file.directory)
    path = Path(os.path.normpath(file.path.parent / text))
    if not path.is_file():
        raise InputError(
            f"{file.path} extends {text!r}: {path} is not a file, and no recipe that travels with qtk has that name"
            f"{closest(text, shipped_names(_ROOM))}"
        )
    return RecipeFile(path, path.parent)


def _variables(tree: Tree) -> Mapping[str, Tree]:
    found = tree.get(VARIABLES) if isinstance(tree, dict) else None
    if found is None or (isinstance(found, Said) and found.value is None):
        return {}
    if not isinstance(found, dict):
        raise InputError("variables: a mapping from names to values is needed.")
    if odd := [repr(name) for name in found if not isinstance(name, str)]:
        raise InputError(f"variables: {', '.join(odd)} is not a text in YAML; write such a name in quotes.")
    return found


def _require_used(variables: Mapping[str, Tree], used: set[str]) -> None:
    """InputError for variables that nothing refers to: most likely the name of another one, misspelled."""
    idle = [f"variables.{name} is used nowhere{closest(name, sorted(used))}" for name in variables if name not in used]
    if idle:
        raise InputError(f"A recipe refers to a variable as ${{name}}:\n{listing(idle)}")


def _validated(tree: Tree, file: RecipeFile, *, several: bool) -> Recipe:
    def said_in(loc: Sequence[str | int]) -> str:
        origin = origin_at(tree, loc)
        told = origin is not None and (several or origin.name.startswith("--set"))
        return f" [{origin.name}]" if told and origin is not None else ""

    content = plain(_with_paths_from(tree, file.directory))
    recipe = validated(content, Recipe, f"{file.path} is not a valid recipe", said_in)
    found = contradictions(recipe)
    if found:
        raise InputError(f"{file.path} contradicts itself:\n{listing(found)}")
    return recipe


def _with_paths_from(tree: Tree, directory: Path) -> Tree:
    """The tree with its relative paths beginning in `directory`."""

    def moved(loc: Loc, said: Said) -> Tree:
        text, origin = said.value, said.origin
        if not isinstance(text, str) or os.path.abspath(origin.directory) == os.path.abspath(directory):
            return said
        name = ".".join(part for part in loc if isinstance(part, str))
        if os.path.isabs(text) or text.startswith("~") or not is_place(name, origin.directory, text):
            return said
        path = os.path.relpath(origin.directory / text, directory)
        return Said(path if path.startswith(".") else f"./{path}", origin)

    return mapped(tree, moved)
