"""qtk bench accuracy: pass rates on code suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.run import AccuracyOptions
from qtk.cli.options import build, options_from
from qtk.cli.output import emit, json_option, table


@click.command("accuracy")
@click.option("--generations", type=click.Path(path_type=Path), help="Score the answers in this JSONL file.")
@options_from(AccuracyOptions)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace an existing directory.")
@json_option
def command(
    generations: Path | None, output: Path, resume: bool, overwrite: bool, as_json: bool, **values: Any
) -> None:
    """Score answers by running their programs in a sandbox.

    \b
    qtk bench accuracy --suite humaneval-x:python,java --generations answers.jsonl -o scores
    """
    from qtk.bench.accuracy.run import run_accuracy
    from qtk.errors import InputError

    options = build(AccuracyOptions, values)
    if generations is None:
        raise InputError("Give the answers to score with --generations FILE.")
    result = run_accuracy(options, output, answers=generations, resume=resume, overwrite=overwrite)
    ks = [rate.k for rate in result.scores[0].pass_at]
    columns = ("suite", "language", "tasks", *(text for k in ks for text in (f"pass@{k} %", "± SE")), "verdicts")
    rows = [
        (
            score.suite,
            score.language,
            len(score.tasks),
            *(
                None if value is None else round(100 * value, 2)
                for rate in score.pass_at
                for value in (rate.value, rate.standard_error)
            ),
            ", ".join(f"{count} {verdict}" for verdict, count in score.verdicts.items()),
        )
        for score in result.scores
    ]

    def show(console: Console) -> None:
        console.print(table(f"Accuracy, rules: {result.rules}; sandbox: {result.sandbox['level']}", columns, rows))
        for name, reason in result.skipped.items():
            console.print(f"not scored: {name}: {reason}")

    emit(result, as_json, show)
