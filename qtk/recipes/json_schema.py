"""The JSON Schema of recipes' files, for editors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtk.recipes.schema import RecipeText

SCHEMA_NAME = "recipe.schema.json"
TITLE = "A recipe of qtk"
_REFERENCE = {"type": "string", "pattern": r"^\$\{[^{}]+\}$"}
_REMOVAL = {"type": "null"}
# What options models say to the command line, and no schema knows.
_OUR_OWN = ("names", "also", "off", "was", "was_values")


def recipe_schema(names_of: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """The schema of a recipe's file (draft 7, which editors know). Nothing is required, because a recipe may inherit it; every
    field takes a variable too, and null, which takes away what is inherited.

    names_of: the names of a kind ("gpus") that fields ask for; they are offered, and other texts taken.
    """
    schema = RecipeText.model_json_schema()
    definitions = {name: _section(part, names_of) for name, part in schema.pop("$defs").items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **_section(schema, names_of),
        "title": TITLE,
        "definitions": definitions,
    }


def _section(schema: dict[str, Any], names_of: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """An object without what is required, each of its fields opened for variables and null."""
    fields = {name: _field(field, names_of) for name, field in schema["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _field(field: dict[str, Any], names_of: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    shown = {key: field[key] for key in ("description", "default") if field.get(key) is not None}
    value = {key: it for key, it in field.items() if key not in ("title", "description", "default", *_OUR_OWN)}
    choices = [_plain(it) for it in value.pop("anyOf", [])] or [_plain(value)]
    if kind := field.get("names"):
        choices = [{"enum": [*field.get("also", ()), *names_of(kind)]}, *choices]
    choices = [it for it in choices if it != _REMOVAL]
    return {**shown, "anyOf": [*choices, _REFERENCE, _REMOVAL]}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the places of draft 7, and a reference to a section alone."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/$defs/", "#/definitions/")}
    if "items" in schema:
        members = [_plain(schema["items"]), *([] if "$ref" in schema["items"] else [_REFERENCE])]
        return {"type": "array", "items": {"anyOf": members}}
    return {key: value for key, value in schema.items() if key != "title"}
