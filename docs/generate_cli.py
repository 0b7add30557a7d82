"""Writes docs/cli.md: the help of every command, as the command line prints it.

python docs/generate_cli.py            writes it
python docs/generate_cli.py --check    exit code 1 when it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from qtk.cli.main import cli

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below `group`, depth first, with its words."""
    context = click.Context(group, info_name=" ".join(path))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def help_text(command: click.Command, path: tuple[str, ...]) -> str:
    """What `--help` prints, at a fixed width, without lines that end in blanks."""
    context = click.Context(command, info_name=" ".join(path), terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def document() -> str:
    """The whole page."""
    parts = [
        "# The command line\n",
        "Written by `make docs` from the commands themselves; a test holds it current.\n",
        f"```\n{help_text(cli, ('qtk',))}\n```\n",
    ]
    for path, command in commands(cli, ("qtk",)):
        parts.append(f"{'#' * len(path)} {' '.join(path)}\n\n```\n{help_text(command, path)}\n```\n")
    return "\n".join(parts)


def main(words: list[str]) -> int:
    text = document()
    if "--check" in words:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is out of date: make docs", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
