"""qtk completion: the script that lets a shell complete qtk's words, made by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from qtk.errors import InputError

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, and the names of GPUs, backends, suites and recipes.

    \b
    source <(qtk completion bash)           (in ~/.bashrc)
    source <(qtk completion zsh)            (in ~/.zshrc)
    qtk completion fish | source            (in ~/.config/fish/config.fish)
    """
    complete = get_completion_class(shell)
    if complete is None:  # none of click's versions so far
        raise InputError(f"The installed version of click completes nothing in {shell}.")
    click.echo(complete(context.find_root().command, {}, "qtk", "_QTK_COMPLETE").source())
