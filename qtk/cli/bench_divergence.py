"""qtk bench divergence: how far a model's predictions are from the float model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.bench.options import DivergenceOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table

if TYPE_CHECKING:
    from qtk.bench.divergence import DivergenceResult


@click.command("divergence")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="The float model's directory.")
@options_from(DivergenceOptions)
@output_options("Also write the result to this directory.", required=False)
@json_option
def command(model: Path, reference: Path, out: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Measure KL divergence, perplexity and top-1 agreement of MODEL (a checkpoint or an engine) against the float model.

    \b
    qtk bench divergence int4 --reference merged
    qtk bench divergence engine --reference merged --rows 32 --seq-len 512 -o divergence
    qtk bench divergence int4 --reference merged --data held-out.jsonl
    """
    from qtk.bench.divergence import measure_divergence
    from qtk.bench.results import measure_into

    options = build(DivergenceOptions, values)

    def measure() -> DivergenceResult:
        return measure_divergence(model, reference, options)

    if out is None:
        result = measure()
    else:
        inputs = {"model": model, "reference": reference}
        result = measure_into(out, "divergence", options, inputs, measure, overwrite=overwrite)
    columns = ("text", "tokens", "KL", "± SE", "KL p99", "KL max", "top-1", "± SE", "perplexity", "reference")
    rows = [
        (
            text.text,
            text.tokens,
            text.kl.mean,
            text.kl.standard_error,
            text.kl_p99,
            text.kl_max,
            text.top1_agreement.mean,
            text.top1_agreement.standard_error,
            text.perplexity,
            text.perplexity_reference,
        )
        for text in (*result.texts, result.pooled)
    ]
    emit(
        result,
        as_json,
        lambda console: console.print(table(f"Divergence of {model} from {reference}, nats per token", columns, rows)),
        made=out,
    )
