"""qtk bench latency: how fast engines and endpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from qtk.bench.endpoint.options import EndpointOptions, LoadOptions, is_address
from qtk.bench.options import LatencyOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table

if TYPE_CHECKING:
    from qtk.bench.endpoint.load_result import LoadLevel
    from qtk.bench.latency_result import LatencyReport


@click.command()
@click.argument("engines", nargs=-1, required=True, metavar="ENGINE|ADDRESS...")
@options_from(LatencyOptions)
@options_from(EndpointOptions)
@options_from(LoadOptions)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    help="Also draw throughput against latency under load: an .svg file; with -o, its name in that directory.",
)
@output_options("Also write the result to this directory.", required=False)
@json_option
def command(
    engines: tuple[str, ...], plot_file: Path | None, out: Path | None, overwrite: bool, as_json: bool, **values: Any
) -> None:
    """Measure an engine, or an endpoint of OpenAI's API: tokens a second over the whole call, time to first token, time between
    tokens.

    Several are measured by turns, one call of each, so that their ratios hold on a busy machine too. Each ratio is to the
    first, from pairs of neighbouring calls. An endpoint is asked for streams by its address; --concurrency and --rate then put
    it under load.

    \b
    qtk bench latency engine
    qtk bench latency engine-float engine -o latency
    qtk bench latency engine --shapes 64/32,256/128 --batch-size 4 --json
    qtk bench latency http://127.0.0.1:8000/v1 --model my-model --tokenizer engine
    qtk bench latency http://127.0.0.1:8000/v1 --tokenizer engine --shapes 64/64 --concurrency 1,2,4,8 -o load --plot load.svg
    """
    from qtk import bench
    from qtk.errors import InputError

    options, endpoint, load = build(LatencyOptions, values), build(EndpointOptions, values), build(LoadOptions, values)
    if not any(is_address(engine) for engine in engines) and (endpoint, load) != (EndpointOptions(), LoadOptions()):
        raise InputError("Options of endpoints need the address of one, such as http://127.0.0.1:8000/v1.")
    levels = [*load.clients(), *load.rates()]
    if not levels and (limit := next((name for name in _OF_LOAD if values[name] is not None), None)):
        raise InputError(f"--{limit.replace('_', '-')} is of requests under load: give --concurrency or --rate.")
    if plot_file is not None:
        from qtk.bench.accuracy.results.plot import require_plot_name
        from qtk.bench.results import require_writable

        if not levels:
            raise InputError("--plot draws an endpoint under load: give --concurrency or --rate.")
        require_plot_name(plot_file, inside=out)
        if out is None:
            require_writable(plot_file, overwrite=overwrite)
    report = bench.latency(engines, options, endpoint=endpoint, load=load, out=out, overwrite=overwrite, plot=plot_file)
    found: tuple[LoadLevel, ...] = getattr(report, "load", ())
    failed = getattr(report, "failure", None)
    emit(report, as_json, lambda console: _show(console, report, found, options.batch_size), failed)


_OF_LOAD = ("max_ttft", "max_inter_token")


def _show(console: Console, report: LatencyReport, load: tuple[LoadLevel, ...], batch_size: int) -> None:
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
        on = f"{engine.gpu}, {engine.dtype}" if engine.backend != "endpoint" else "from its streams"
        console.print(table(f"{engine.engine}: {on}, batch {batch_size}", columns, rows))
        console.print(f"First call: {engine.first_call}.")
    if report.ratios:
        ratios = [(r.engine, r.shape, r.ratio, r.standard_error, r.pairs) for r in report.ratios]
        headings = ("engine", "input/output", "times as fast", "±", "pairs of calls")
        console.print(table(f"Against {report.engines[0].engine}", headings, ratios))
    for endpoint in dict.fromkeys(level.endpoint for level in load):
        console.print(_load_table(endpoint, [level for level in load if level.endpoint == endpoint]))
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    console.print(
        f"{report.processor}: {threads} on {report.cores} cores, load {report.load_before} before, {report.load_after} after."
    )
    for warning in report.warnings:
        console.print(f"In doubt: {warning}.")


def _load_table(endpoint: str, levels: list[LoadLevel]) -> Any:
    columns = (
        "input/output", "load", "tokens/s", "requests/s", "goodput/s", "TTFT ms p50", "p99", "token ms p50", "p99",
        "request ms p50", "p99", "requests", "failed",
    )  # fmt: skip
    rows = [
        (
            level.shape,
            level.load,
            level.tokens_per_s,
            level.requests_per_s,
            level.within,
            *(
                value
                for times in (level.ttft_ms, level.inter_token_ms, level.request_ms)
                for value in ((times.p50, times.p99) if times else (None, None))
            ),
            level.requests,
            sum(level.failed.values()),
        )
        for level in levels
    ]
    return table(f"{endpoint} under load", columns, rows)
