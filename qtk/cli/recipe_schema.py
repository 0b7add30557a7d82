"""qtk recipe schema: the JSON Schema of recipes."""

from __future__ import annotations

import json

import click


@click.command()
def command() -> None:
    """Print the JSON Schema of recipes: with it an editor completes names and values, and marks what is wrong.

    `qtk recipe init` writes it beside the recipe. An editor with a YAML language server takes it from the recipe's first line:
    # yaml-language-server: $schema=recipe.schema.json

    \b
    qtk recipe schema > recipe.schema.json
    """
    from qtk.cli.known_names import names_of
    from qtk.recipes.json_schema import recipe_schema

    print(json.dumps(recipe_schema(names_of), indent=2, ensure_ascii=False))
