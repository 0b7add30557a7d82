"""qtk bench latency: how fast an engine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from qtk.bench.options import LatencyOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table

if TYPE_CHECKING:
    from qtk.bench.latency import LatencyReport


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@options_from(LatencyOptions)
@output_options("Also write the result to this directory.", required=False)
@json_option
def command(engine: Path, out: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Measure an engine: tokens a second over the whole call, time to first token, time between tokens.

    \b
    qtk bench latency engine
    qtk bench latency engine --shapes 64/32,256/128 --batch-size 4 --json
    qtk bench latency engine -o latency
    """
    from qtk.bench.latency import measure
    from qtk.bench.results import measure_into
    from qtk.engines.sessions.session import open_session
    from qtk.progress import Progress

    options = build(LatencyOptions, values)

    def run() -> LatencyReport:
        with open_session(engine, options.threads) as session, Progress("bench latency", None, "calls") as progress:
            return measure(session, options, on_call=lambda detail: progress.advance(1, detail))

    if out is None:
        report = run()
    else:
        report = measure_into(out, "latency", options, {"engine": engine}, run, overwrite=overwrite)

    def show(console: Console) -> None:
        columns = ("input/output", "tokens/s", "±", "decode tokens/s", "TTFT ms", "token ms p50", "p90", "p99", "calls")
        rows = [
            (
                f"{s.input_len}/{s.output_len}",
                s.tokens_per_s,
                s.standard_error,
                s.decode_tokens_per_s,
                s.ttft_ms.p50,
                *((t.p50, t.p90, t.p99) if (t := s.inter_token_ms) else (None, None, None)),
                s.runs,
            )
            for s in report.shapes
        ]
        title = f"{report.engine}: {report.gpu}, {report.dtype}, batch {options.batch_size}"
        console.print(table(title, columns, rows))
        console.print(f"First call: {report.first_call}.")

    emit(report, as_json, show, made=out)
