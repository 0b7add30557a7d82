"""One vocabulary on the command line: an option that several commands have is spelled and explained alike."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from qtk.cli.main import cli


def options(group: click.Group = cli, path: str = "qtk") -> Iterator[tuple[str, click.Option]]:
    """(command, option) of every option that --help shows."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from options(command, f"{path} {name}")
        else:
            shown = (option for option in command.params if isinstance(option, click.Option) and not option.hidden)
            yield from ((f"{path} {name}", option) for option in shown)


def named(name: str) -> dict[str, click.Option]:
    """command -> its option of that name."""
    return {command: option for command, option in options() if name in option.opts}


def test_an_output_is_a_directory() -> None:
    outputs = named("--output")
    assert len(outputs) >= 8
    assert [command for command, option in outputs.items() if option.metavar != "DIRECTORY"] == []
    assert all(option.opts == ["-o", "--output"] for option in outputs.values())
    assert outputs.keys() == named("--overwrite").keys()


@pytest.mark.parametrize("name", ["--threads", "--json"])
def test_an_option_is_explained_alike_everywhere(name: str) -> None:
    helps = {option.help for option in named(name).values()}
    assert len(helps) == 1, helps


@pytest.mark.parametrize("gone", ["--format", "--prompt-format", "--chat", "--symmetric"])
def test_no_command_shows_an_old_spelling(gone: str) -> None:
    assert named(gone) == {}


def test_the_chat_formats_are_the_same_everywhere() -> None:
    choices = [set(option.type.choices) for option in named("--chat-format").values()]
    assert len(choices) >= 3
    assert set().union(*choices) == {"none", "model", "codefuse"}


def test_no_default_is_shown_as_default() -> None:
    for command, option in options():
        context = click.Context(click.Command(command), info_name=command)
        assert "[default: default]" not in (option.get_help_record(context) or ("", ""))[1], command
