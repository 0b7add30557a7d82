"""qtk recipe show: a recipe as `qtk run` understands it."""

from __future__ import annotations

import click

from qtk.cli.known_names import completer
from qtk.cli.options import set_option
from qtk.cli.output import ResultConsole, emit, json_option


@click.command()
@click.argument("recipe", shell_complete=completer("recipes"))
@set_option
@click.option("--origins", is_flag=True, help="Behind each value, the file or option that says it.")
@json_option
def command(recipe: str, settings: tuple[str, ...], origins: bool, as_json: bool) -> None:
    """Print RECIPE, a YAML file or the name of a recipe that travels with qtk, with what it extends, --set and variables put
    in. Paths begin where those of RECIPE do.

    \b
    qtk recipe show smollm2-135m
    qtk recipe show qwen2.5-coder-7b-l4 --set build.max_input_len=4096 --origins
    qtk recipe show template > my-recipe.yaml
    """
    from qtk.recipes.reading import find_recipe, resolve_recipe
    from qtk.recipes.recipe_text import recipe_yaml

    resolved = resolve_recipe(find_recipe(recipe), settings)
    said, content = resolved.origins(), resolved.content()

    def show(console: ResultConsole) -> None:
        print(recipe_yaml(content, (lambda path: _origin(said, path)) if origins else lambda path: ""), end="")

    emit({"recipe": content, "origins": said}, as_json, show)


def _origin(said: dict[str, str], path: str) -> str:
    """Who said the value at a path, or the values of the list there."""
    return ", ".join(dict.fromkeys(name for place, name in said.items() if f"{place}.".startswith(f"{path}.")))
