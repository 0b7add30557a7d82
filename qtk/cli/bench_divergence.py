"""qtk bench divergence: how far a model's predictions are from the float model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.bench.options import DivergenceOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table
from qtk.errors import GateFailed
from qtk.wording import counted

if TYPE_CHECKING:
    from qtk.bench.divergence_result import DivergenceResult


@click.command("divergence")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    required=True,
    type=click.Path(path_type=Path),
    help="The float model: a directory or an id of the hub.",
)
@options_from(DivergenceOptions)
@output_options("Also write the result to this directory.", required=False)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    help="Exit with 3 unless the mean KL divergence is at most this, in nats per token, with 95 % confidence.",
)
@json_option
def command(
    model: Path,
    reference: Path,
    out: Path | None,
    overwrite: bool,
    max_kl: float | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure KL divergence, perplexity and top-1 agreement of MODEL (a checkpoint, an engine or an id of the hub) against the float model.

    \b
    qtk bench divergence int4 --reference merged
    qtk bench divergence engine --reference merged --rows 32 --seq-len 512 -o divergence
    qtk bench divergence int4 --reference merged --data held-out.jsonl --max-kl 0.1
    """
    from qtk import bench

    result = bench.divergence(model, reference, build(DivergenceOptions, values), out=out, overwrite=overwrite)
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
        _beyond(result, max_kl),
        made=out,
    )


def _beyond(result: DivergenceResult, max_kl: float | None) -> GateFailed | None:
    """The gate's failure, where the rows do not show that the mean is at most `max_kl`."""
    from qtk.bench.accuracy.results.statistics import mean_limits

    kl = result.pooled.kl
    if max_kl is None or (most := mean_limits(kl.mean, kl.standard_error, result.pooled.rows).high) <= max_kl:
        return None
    why = "more than" if kl.mean > max_kl else f"so it may be {most:.4g}, too few rows to tell that it is at most"
    return GateFailed(
        f"KL {kl.mean:.4g} ± {kl.standard_error:.2g} nats per token over {counted(result.pooled.rows, 'row')}: {why} {max_kl:g}."
    )
