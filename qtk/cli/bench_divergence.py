"""qtk bench divergence: how far a model's predictions are from the float model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qtk.bench.divergence import DivergenceOptions
from qtk.cli.options import build, options_from
from qtk.cli.output import emit, json_option, table


@click.command("divergence")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="The float model's directory.")
@options_from(DivergenceOptions)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing result file.")
@json_option
def command(model: Path, reference: Path, output: Path | None, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Measure KL divergence, perplexity and top-1 agreement of MODEL (a checkpoint or an engine) against the float model.

    \b
    qtk bench divergence int4 --reference merged
    qtk bench divergence engine --reference merged --rows 32 --seq-len 512 -o divergence.json
    qtk bench divergence int4 --reference merged --data held-out.jsonl
    """
    from qtk.bench.divergence import measure_divergence
    from qtk.bench.results import require_writable, write_result

    options = build(DivergenceOptions, values)
    if output is not None:
        require_writable(output, overwrite=overwrite)
    result = measure_divergence(model, reference, options)
    if output is not None:
        write_result(result, output)
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
    )
