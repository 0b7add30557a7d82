"""qtk help: the help of a command, as its --help shows it."""

from __future__ import annotations

import click


@click.command()
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command, or of qtk.

    \b
    qtk help quantize
    qtk help bench latency
    """
    at = context.find_root()
    for word in words:
        if not isinstance(at.command, click.Group):
            raise click.UsageError(f"{at.command_path} has no commands of its own.", at)
        _, found, _ = at.command.resolve_command(at, [word])
        assert found is not None  # an unknown word is a usage error
        at = click.Context(found, info_name=word, parent=at)
    click.echo(at.get_help())
