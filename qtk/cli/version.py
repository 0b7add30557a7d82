"""qtk version: the version of qtk, as `qtk --version` says it."""

from __future__ import annotations

import click

import qtk
from qtk.cli.output import emit, json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Show qtk's version.

    \b
    qtk version
    """
    emit({"qtk_version": qtk.__version__}, as_json, lambda console: console.print(f"qtk, version {qtk.__version__}"))
