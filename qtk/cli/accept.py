"""qtk accept: runs the checks that need the machine an engine is for, and records them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from qtk.bench.options import AcceptOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table
from qtk.errors import GateFailed

if TYPE_CHECKING:
    from qtk.release.accept import Acceptance


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@output_options("Directory of the record.")
@options_from(AcceptOptions)
@json_option
def command(engine: Path, out: Path, overwrite: bool, as_json: bool, **values: object) -> None:
    """Run an engine's checks and the published shapes on the machine it is for, and record them. Exit 3 if a check fails, or
    if the engine's limits are too small for a shape.

    \b
    qtk accept engine-a10 -o acceptance --reference int4
    """
    from qtk.bench.results import measure_into
    from qtk.checkpoint.hub import model_directory
    from qtk.release.accept import accept

    options = build(AcceptOptions, values)
    if options.reference:
        options = options.model_copy(update={"reference": model_directory(options.reference)})
    inputs = {"engine": engine} | ({"reference": options.reference} if options.reference else {})
    result = measure_into(out, "acceptance", options, inputs, lambda: accept(engine, options), overwrite=overwrite)

    def show(console: Console) -> None:
        rows = [(c.name, c.figure, "passed" if c.passed else "FAILED", c.meaning) for c in result.checks]
        console.print(table(f"{result.engine} on {result.gpu}", ("check", "figure", "", "meaning"), rows))
        if result.latency is not None:
            (measured,) = result.latency.engines
            speeds = [(s.name, s.tokens_per_s, s.decode_tokens_per_s, s.ttft_ms.p50) for s in measured.shapes]
            console.print(table("Latency", ("shape", "tokens/s", "decode tokens/s", "TTFT ms"), speeds))
            console.print(f"First call: {measured.first_call}.")
        for name, why in result.checks_not_run.items():
            console.print(f"Not run: {name}: {why}.")
        if result.shapes_not_run:
            console.print(f"Not run: {', '.join(result.shapes_not_run)}: the engine's limits are too small.")
        console.print(f"Verdict: {result.verdict}.")

    emit(result, as_json, show, _failure(result, engine, out), made=out)


def _failure(result: Acceptance, engine: Path, out: Path) -> GateFailed | None:
    failed = [check.name for check in result.checks if not check.passed]
    if failed:
        return GateFailed(f"{engine} did not pass: {', '.join(failed)}. The record is in {out}.")
    if result.verdict == "incomplete":
        return GateFailed(
            f"{engine} passed what was run, but not {', '.join(result.shapes_not_run)}: build it with a larger "
            f"--max-input-len and --max-output-len, or leave these out of --shapes. The record is in {out}."
        )
    return None
