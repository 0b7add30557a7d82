"""qtk recipe init: a recipe for a model and a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qtk.cli.known_names import completer, names_of
from qtk.cli.output import ResultConsole, emit, json_option
from qtk.errors import InputError


@click.command()
@click.argument("model")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--gpu",
    default="cpu",
    show_default=True,
    shell_complete=completer("gpus"),
    help="What the engine runs on: a name from `qtk gpus`, cpu, or the YAML file of a profile.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="An adapter to merge first: a directory, or an id on the hub. Repeatable.",
)
@json_option
def command(model: str, file: Path | None, gpu: str, adapters: tuple[str, ...], as_json: bool) -> None:
    """Write a commented recipe that quantizes MODEL, a directory or an id of the hub, to INT4 for a GPU, into FILE [default: the
    name of model and GPU, .yaml], and the schema for editors beside it.

    Of the model, config.json is enough. Group size, container, backend and limits are checked as by `qtk plan`; exit code 3
    where nothing fits.

    \b
    qtk recipe init Qwen/Qwen2.5-Coder-7B-Instruct --gpu l4
    qtk recipe init ./merged release.yaml --gpu a10
    """
    from qtk.checkpoint.atomic import write_atomic
    from qtk.recipes.fitting import fitting_recipe
    from qtk.recipes.json_schema import SCHEMA_NAME, TITLE, recipe_schema

    made = fitting_recipe(model, gpu, file or Path("recipe.yaml"), adapters)
    place = file or Path(f"{made.name}.yaml")
    if place.exists():
        raise InputError(f"{place} exists already. Give the name of another file, or move it away.")
    if not place.parent.is_dir():
        raise InputError(f"{place.parent} is not a directory.")
    write_atomic(place, made.text)
    schema = place.parent / SCHEMA_NAME
    if not schema.exists() or f'"title": "{TITLE}"' in schema.read_text(encoding="utf-8", errors="replace"):
        write_atomic(schema, json.dumps(recipe_schema(names_of), indent=2, ensure_ascii=False) + "\n")

    def show(console: ResultConsole) -> None:
        console.print(f"Wrote {place}: {made.plan.weights} for {made.plan.gpu} with {made.plan.backend}.")
        console.print_command("Next", ["qtk", "run", str(place)])

    emit({"recipe": str(place), "name": made.name, "plan": made.plan.model_dump(mode="json")}, as_json, show)
