"""qtk bench leaderboard: average score and Win Rate among published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.results.leaderboard import LeaderboardOptions
from qtk.cli.options import build, options_from
from qtk.cli.output import emit, json_option, table


@click.command("leaderboard")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@options_from(LeaderboardOptions)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the table to this JSON file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@json_option
def command(results: tuple[Path, ...], output: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Rank RESULTS of `qtk bench accuracy` among published models: average score and Win Rate over the languages.

    \b
    qtk bench accuracy engine --suite leaderboard --data data -o scores
    qtk bench leaderboard scores
    qtk bench leaderboard scores-bf16 scores-int4 --reference table.yaml -o leaderboard.json
    """
    from qtk.bench.accuracy.results.leaderboard import leaderboard
    from qtk.bench.accuracy.results.result import read_result
    from qtk.bench.results import require_writable, write_result

    if output is not None:
        require_writable(output, overwrite=overwrite)
    named = {str(path): read_result(path) for path in results}
    ranked = leaderboard(named, build(LeaderboardOptions, values))
    if output is not None:
        write_result(ranked, output)
    rates = ["Win Rate"] if len(named) == 1 else [f"Win Rate beside {name}" for name in named]
    columns = ("model", "average", *rates, *ranked.languages)
    rows = [
        (
            row.model if row.published else f"> {row.model}",
            row.average,
            *(row.win_rate.get(name) for name in named),
            *(row.scores[language] for language in ranked.languages),
        )
        for row in ranked.standings
    ]

    def show(console: Console) -> None:
        title = f"pass@1 (%) in {len(ranked.languages)} languages; Win Rate: 1 to {ranked.models}, the number of models"
        console.print(table(title, columns, rows))
        if ranked.absent:
            console.print(f"not counted, because not every result has it: {', '.join(ranked.absent)}")
        console.print(f"published: {ranked.source} ({ranked.reference})")

    emit(ranked, as_json, show)
