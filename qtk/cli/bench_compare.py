"""qtk bench compare: two accuracy results of the same tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.results.comparison import CompareOptions
from qtk.bench.accuracy.results.comparison_rows import LanguageComparison
from qtk.cli.options import build, options_from
from qtk.cli.output import emit, json_option, table

_LIKELIHOOD = ("suite", "language", "tasks", "before", "after", "change", "± SE", "p", "tasks worse", "verdict")
_HARNESS = ("task", "metric", "documents", "before", "after", "change", "± SE", "worse", "better", "p", "verdict")
_NAMED = 40  # flips in the table's notes; all of them are in the JSON


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options_from(CompareOptions)
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Also draw it: a .png, .svg or .pdf file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the comparison to this JSON file.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--gate", is_flag=True, help="Exit with 3 when a language lost more than the tolerance.")
@json_option
def command(
    before: Path,
    after: Path,
    plot_file: Path | None,
    output: Path | None,
    overwrite: bool,
    gate: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Compare two results of `qtk bench accuracy` (directories or result.json): flips, exact McNemar test, verdict.

    \b
    qtk bench compare scores-bf16 scores-int4
    qtk bench compare scores-bf16 scores-int4 --tolerance 1 --gate --plot loss.svg -o comparison.json
    """
    from qtk.bench.accuracy.results.comparison import compare, plot
    from qtk.bench.accuracy.results.result import read_result
    from qtk.bench.results import require_writable, write_result
    from qtk.errors import GateFailed

    options = build(CompareOptions, values)
    for file in (output, plot_file):
        if file is not None:
            require_writable(file, overwrite=overwrite)
    result = compare(read_result(before), read_result(after), options)
    if output is not None:  # first: a picture that cannot be drawn must not cost the figures
        write_result(result, output)
    if plot_file is not None:
        plot(result, plot_file)
    columns = (
        *("suite", "language", "tasks", "before %", "± SE", "after %", "± SE", "change", "± SE", "lost", "gained"),
        *("p", "verdict"),
    )
    rows = [
        (*_cells(row), f"{row.published.before:.2f} -> {row.published.after:.2f}" if row.published else None)
        for row in result.languages
    ]
    choices = [
        (*_cells(row), row.mode, f"{row.other_before:.2f} -> {row.other_after:.2f}", round(row.free_after, 2))
        for row in result.choices
    ]

    likelihoods = [
        (
            *(row.suite, row.language, row.tasks, row.before, row.after, row.difference, row.difference_error),
            *(_probability(row.p_value), row.worse, row.verdict),
        )
        for row in result.likelihood
    ]

    harness = [
        (
            *(row.task, row.metric, row.documents, row.before, row.after, row.difference, row.difference_error),
            *(len(row.lost), len(row.gained), _probability(row.p_value), row.verdict),
        )
        for row in result.lm_eval
    ]

    def show(console: Console) -> None:
        title = f"pass@1 before and after; tolerance {options.tolerance:g} points; rules: {result.rules}"
        if rows:
            console.print(table(title, (*columns, "published"), rows))
        if choices:
            heads = (*columns, "by", "the other way", "after, its own choice")
            console.print(table("Questions, by the way of asking in which `before` was better", heads, choices))
        if likelihoods:
            title = f"Log-likelihood of the references, nats per token; tolerance {options.likelihood_tolerance:g}"
            console.print(table(title, _LIKELIHOOD, likelihoods))
        if harness:
            console.print(table("Tasks of lm-evaluation-harness", _HARNESS, harness))
        for row in result.rates:
            for name, tasks in (("lost", row.lost), ("gained", row.gained)):
                if tasks:
                    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
                    console.print(f"{row.suite} {row.language}, {name}: {', '.join(tasks[:_NAMED])}{more}")
        for difference in result.differences:
            console.print(f"note: {difference}")
        if result.baseline is not None and any(row.published for row in result.languages):
            console.print(f"published: {result.baseline.summary}")

    emit(result, as_json, show)
    if gate and result.beyond:
        names = ", ".join(result.beyond)
        allowed = f"{options.tolerance:g} points" + (
            f" ({options.likelihood_tolerance:g} nats per token)" if result.likelihood else ""
        )
        raise GateFailed(f"More was lost than the tolerance of {allowed}: {names}.")


def _probability(value: float | None) -> str | None:
    """Two digits that count: a very small one is not 0."""
    return None if value is None else f"{value:.2g}"


def _cells(row: LanguageComparison) -> tuple[object, ...]:
    numbers = (row.before, row.before_error, row.after, row.after_error, row.difference, row.difference_error)
    return (
        row.suite,
        row.language,
        row.tasks,
        *(None if value is None else round(value, 2) for value in numbers),
        len(row.lost),
        len(row.gained),
        _probability(row.p_value),
        row.verdict,
    )
