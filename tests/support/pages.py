"""Reads the documentation: its pages, the blocks of code in them, the examples of commands, and whether those parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from qtk.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str = r"\w*") -> list[str]:
    """The fenced blocks of a page, of one language or of all."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


def examples(text: str) -> list[str]:
    """The lines that are commands of qtk."""
    return [line.strip() for line in text.splitlines() if re.match(r"\s*qtk [a-z]", line)]


def parses(line: str) -> None:
    """The words of an example are taken by the command line: commands, options and choices exist."""
    words = shlex.split(line.split("     (")[0], comments=True)[1:]
    for mark in ("<", ">", "|"):
        words = words[: words.index(mark)] if mark in words else words
    group: click.Command = cli
    # click keeps the help option that a command was first asked for: the names have to be the command line's own.
    context = click.Context(cli, info_name="qtk", help_option_names=["-h", "--help"])
    while isinstance(group, click.Group):
        name, found, words = group.resolve_command(context, words)
        assert found is not None
        context, group = click.Context(found, info_name=name, parent=context), found
    group.make_context(context.info_name, list(words), parent=context.parent)
