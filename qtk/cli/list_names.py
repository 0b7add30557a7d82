"""qtk list: the names that options take."""

from __future__ import annotations

from dataclasses import asdict

import click

from qtk.cli.known_names import LISTED
from qtk.cli.output import emit, json_option, table


@click.command()
@click.argument("kind", type=click.Choice(list(LISTED)))
@json_option
def command(kind: str, as_json: bool) -> None:
    """List what qtk knows of one KIND: the values of --suite, --container, --backend, --gpu, the recipes of `qtk run`,
    the architectures of models, or the metrics of a recipe's gates.

    \b
    qtk list suites
    qtk list containers --json
    """
    known = LISTED[kind]()
    rows = [(it.name, it.meaning, ", ".join(it.parts) or None) for it in known]
    emit(
        {kind: [asdict(it) for it in known]},
        as_json,
        lambda console: console.print(table(kind, ("name", "what it is", "parts"), rows)),
    )
