"""qtk finetune: a base model and data to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.cli.options import START_AGAIN, build, options_from, output_options
from qtk.cli.output import emit, json_option, table
from qtk.finetuning.options import FinetuneOptions
from qtk.finetuning.ranks import rank
from qtk.sizes import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from qtk.finetuning.record import FinetuneReport


@click.command(name="finetune")
@click.argument("base", type=click.Path(path_type=Path))
@output_options(overwrite=START_AGAIN)
@options_from(FinetuneOptions)
@click.option("--resume", is_flag=True, help="Continue a training that was stopped, after its last checkpoint.")
@json_option
def command(base: Path, out: Path, overwrite: bool, resume: bool, as_json: bool, **values: Any) -> None:
    """Train a LoRA adapter for a base model, a directory or an id of the Hugging Face hub, on one task or several.

    The base may be quantized already: then it is held as it is, and the adapter learns beside the deployed weights.

    \b
    qtk finetune BASE --data code.jsonl -o adapter
    qtk finetune BASE --data completion --data tests --weighted-loss case3 -o adapter
    qtk finetune BASE --data code --chat-format codefuse --qlora --rank 192 -o adapter
    qtk finetune INT4 --data code.jsonl -o adapter
    torchrun --nproc-per-node 4 -m qtk finetune BASE --data code -o adapter
    """
    from qtk.finetuning.finetune import finetune

    report = finetune(base, out, build(FinetuneOptions, values), overwrite=overwrite, resume=resume)
    if rank() == 0:
        emit(report, as_json, lambda console: _show(report, console), made=out)


def _show(report: FinetuneReport, console: Console) -> None:
    columns = ("task", "rows", "dropped", "trained on", "held back", "loss before", "loss", "test loss")
    rows = [
        (
            task.name,
            task.rows,
            task.dropped,
            task.train,
            task.held_back,
            _loss(task.loss_before),
            _loss(task.loss),
            _loss(task.test_loss),
        )
        for task in report.tasks
    ]
    console.print(table(f"Trained into {report.output}", columns, rows))
    early = ", stopped early" if report.stopped_early else ""
    held_as = {"nf4": "NF4", "deployed": f"as deployed ({report.base.container})", "none": report.dtype}
    facts: list[tuple[str, object]] = [
        ("steps", f"{report.steps} of {report.planned_steps}{early}; kept: step {report.best_step}"),
        (f"held-back loss, {report.options.weighted_loss}", f"{_loss(report.loss_before)} -> {_loss(report.loss)}"),
        ("base", f"{report.base.name}, held {held_as[report.base.rounding]}"),
        ("parameters that learnt", f"{report.parameters:,}"),
        ("tokens", f"{report.tokens:,}, {report.tokens_per_second:,.0f} a second"),
        ("time", f"{report.seconds:.1f} s"),
        ("peak memory", size_text(report.peak_memory_bytes)),
    ]
    console.print(table("", ("", ""), facts))


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
