"""qtk bench leaderboard: average score and Win Rate among published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.results.leaderboard import LeaderboardOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table


@click.command("leaderboard")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@options_from(LeaderboardOptions)
@output_options("Also write the table to this directory.", required=False)
@json_option
def command(results: tuple[Path, ...], out: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Rank RESULTS of `qtk bench accuracy` among published models: average score and Win Rate over the languages.

    \b
    qtk bench accuracy engine --suite leaderboard --data data -o scores
    qtk bench leaderboard scores
    qtk bench leaderboard scores-bf16 scores-int4 --reference table.yaml -o leaderboard
    """
    from qtk.bench.accuracy.results.leaderboard import leaderboard
    from qtk.bench.accuracy.results.result import read_result
    from qtk.bench.results import measure_into

    options = build(LeaderboardOptions, values)
    ranked = leaderboard({str(path): read_result(path) for path in results}, options)
    if out is not None:
        inputs = {f"result {number}": path for number, path in enumerate(results, 1)}
        measure_into(out, "leaderboard", options, inputs, lambda: ranked, overwrite=overwrite)

    def show(console: Console) -> None:
        standings = ranked.table()
        console.print(table(standings.title, standings.columns, standings.rows))
        if ranked.absent:
            console.print(f"not counted, because some result lacks them: {', '.join(ranked.absent)}")
        console.print(f"published: {ranked.source} ({ranked.reference})")

    emit(ranked, as_json, show, made=out)
