"""qtk generate: text from an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qtk.cli.options import build, options_from
from qtk.cli.output import ResultConsole, emit, json_option
from qtk.engines.sessions.options import GenerateOptions


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--prompt", "prompts", multiple=True, required=True, help="The text to continue; - reads it from stdin; repeatable."
)
@options_from(GenerateOptions)
@json_option
def command(engine: Path, prompts: tuple[str, ...], as_json: bool, **values: object) -> None:
    """Generate text with an engine. One prompt's text is written to stdout as it comes.

    \b
    qtk generate engine --prompt "def fibonacci(n):"
    qtk generate engine --chat-format model --prompt "Write a quicksort in Python." --max-new-tokens 200
    qtk generate engine --chat-format codefuse --prompt - --json < question.txt
    """
    from qtk.engines.sessions.session import open_session
    from qtk.engines.sessions.text import generate_text

    options = build(GenerateOptions, values)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    stream = not as_json and len(texts) == 1

    def write(piece: str) -> None:
        print(piece, end="", flush=True)

    with open_session(engine, options.threads) as session:
        result = generate_text(session, texts, options, on_text=write if stream else None)

    def show(console: ResultConsole) -> None:
        if stream:
            print()
        else:
            print("\n\n".join(f"[{number}]\n{row.text}" for number, row in enumerate(result.rows, 1)))

    emit(result, as_json, show)
