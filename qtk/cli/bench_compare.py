"""qtk bench compare: two accuracy results of the same tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.results.score import CompareOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table

_NAMED = 40  # flips that are printed; all of them are in the JSON


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options_from(CompareOptions)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    help="Also draw the comparison: an .svg file; with -o, its name in that directory.",
)
@output_options("Also write the comparison and the plot to this directory.", required=False)
@click.option("--gate", is_flag=True, help="Exit with 3 unless every verdict is: within tolerance.")
@json_option
def command(
    before: Path,
    after: Path,
    plot_file: Path | None,
    out: Path | None,
    overwrite: bool,
    gate: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Compare two results of `qtk bench accuracy` (directories or result.json): flips, exact McNemar test, verdict.

    \b
    qtk bench compare scores-bf16 scores-int4
    qtk bench compare scores-bf16 scores-int4 --tolerance 1 --gate -o comparison --plot loss.svg
    """
    from qtk.bench.accuracy.results.comparison import COMPARISON_NAME, compare
    from qtk.bench.accuracy.results.result import read_result
    from qtk.bench.accuracy.results.tables import compared_tables
    from qtk.bench.results import has_manifest, require_unchanged, require_writable, result_directory, write_result
    from qtk.errors import GateFailed

    options = build(CompareOptions, values)
    if plot_file is not None:
        from qtk.bench.accuracy.results.plot import plot_comparison, require_plot_name

        require_plot_name(plot_file, inside=out)
        if out is None:
            require_writable(plot_file, overwrite=overwrite)
    require_unchanged(before, after)
    comparison = compare(read_result(before), read_result(after), options)
    if out is not None:
        inputs = {"before": before, "after": after}
        with result_directory(out, "accuracy-comparison", options, inputs, overwrite=overwrite) as directory:
            write_result(comparison, directory / COMPARISON_NAME)
            if plot_file is not None:
                plot_comparison(comparison, directory / plot_file)
    elif plot_file is not None:
        plot_comparison(comparison, plot_file)

    def show(console: Console) -> None:
        console.print(f"rules: {comparison.rules}")
        for rows in compared_tables(comparison.rows):
            console.print(table(rows.title, rows.columns, rows.rows))
        for row in comparison.rows:
            for name, tasks in row.flips().items():
                if tasks:
                    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
                    console.print(f"{row.label}, {name}: {', '.join(tasks[:_NAMED])}{more}")
        for difference in comparison.differences:
            console.print(f"note: {difference}")
        if comparison.published is not None:
            console.print(f"published: {comparison.published}")
        console.print(f"Verdict: {comparison.verdict}.")

    unproved = [
        f"{path} has no manifest: nothing shows that it was measured"
        for path in (before, after)
        if not has_manifest(path)
    ]
    reasons = [comparison.gate_failure] if comparison.gate_failure else unproved
    failed = GateFailed("\n".join(reasons)) if gate and reasons else None
    data = comparison.model_dump(mode="json") | {"passed": comparison.passed, "verdict": comparison.verdict}
    emit(data, as_json, show, failed, made=out)
