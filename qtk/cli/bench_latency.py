"""qtk bench latency: how fast engines are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from qtk.bench.options import LatencyOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table

if TYPE_CHECKING:
    from qtk.bench.latency_result import LatencyReport


@click.command()
@click.argument("engines", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="ENGINE [OTHER_ENGINE]...")
@options_from(LatencyOptions)
@output_options("Also write the result to this directory.", required=False)
@json_option
def command(engines: tuple[Path, ...], out: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Measure an engine: tokens a second over the whole call, time to first token, time between tokens.

    Several engines are measured by turns, one call of each, so that their ratios hold on a busy machine too. Each ratio is
    to the first engine, from pairs of neighbouring calls.

    \b
    qtk bench latency engine
    qtk bench latency engine-float engine -o latency
    qtk bench latency engine --shapes 64/32,256/128 --batch-size 4 --json
    """
    from qtk import bench

    options = build(LatencyOptions, values)
    report = bench.latency(engines, options, out=out, overwrite=overwrite)
    emit(report, as_json, lambda console: _show(console, report, options.batch_size))


def _show(console: Console, report: LatencyReport, batch_size: int) -> None:
    columns = ("input/output", "tokens/s", "±", "decode tokens/s", "TTFT ms", "token ms p50", "p90", "p99", "calls")
    for engine in report.engines:
        rows = [
            (
                s.name,
                s.tokens_per_s,
                s.standard_error,
                s.decode_tokens_per_s,
                s.ttft_ms.p50,
                *((t.p50, t.p90, t.p99) if (t := s.inter_token_ms) else (None, None, None)),
                s.runs,
            )
            for s in engine.shapes
        ]
        console.print(table(f"{engine.engine}: {engine.gpu}, {engine.dtype}, batch {batch_size}", columns, rows))
        console.print(f"First call: {engine.first_call}.")
    if report.ratios:
        ratios = [(r.engine, r.shape, r.ratio, r.standard_error, r.pairs) for r in report.ratios]
        headings = ("engine", "input/output", "times as fast", "±", "pairs of calls")
        console.print(table(f"Against {report.engines[0].engine}", headings, ratios))
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    console.print(
        f"{report.processor}: {threads} on {report.cores} cores, load {report.load_before} before, {report.load_after} after."
    )
    for warning in report.warnings:
        console.print(f"In doubt: {warning}.")
