"""qtk recipe: what helps to write recipes, each a subcommand in a file of its own."""

from __future__ import annotations

import click

from qtk.cli.main import LazyGroup

SUBCOMMANDS = {
    "init": ("recipe_init", "Write a commented recipe that fits a model and a GPU."),
    "show": ("recipe_show", "Print a recipe with everything put in that it inherits."),
    "schema": ("recipe_schema", "Print the JSON Schema of recipes, for editors."),
}


@click.group(cls=LazyGroup, lazy=SUBCOMMANDS)
def command() -> None:
    """Write a recipe for a model, show what one says, export the schema for editors.

    \b
    qtk recipe init Qwen/Qwen2.5-Coder-7B-Instruct --gpu l4
    qtk recipe show qwen2.5-coder-7b-l4
    """
