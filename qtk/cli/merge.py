"""qtk merge: LoRA adapters into a float base model, streaming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.adapters.options import MergeOptions
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table
from qtk.sizes import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from qtk.adapters.merge import MergeResult


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...", type=click.Path(path_type=Path))
@output_options()
@options_from(MergeOptions)
@json_option
def command(base: Path, adapters: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Merge LoRA, rsLoRA and DoRA adapters into a float base model: W + sum of weight * s * B A, rounded once.

    An adapter that qtk trained knows its base, and is merged onto what training saw: the float weights, the same rounded to
    NF4, or the weights of a quantized checkpoint, which is then the base to give.

    Each is a directory or an id of the Hugging Face hub ("organisation/name", "organisation/name@revision").

    Streams: memory stays at the adapter and a few slices, whatever the model's size.

    \b
    qtk merge BASE ADAPTER -o merged
    qtk merge BASE A B -o merged --weight 0.7 --weight 0.3
    qtk merge BASE ADAPTER -o merged --qlora-base nf4     (trained with QLoRA elsewhere)
    """
    from qtk.finetuning.merge_deployed import merge_adapters

    result = merge_adapters(base, adapters, out, build(MergeOptions, options), overwrite=overwrite)
    emit(result, as_json, lambda console: _show(result, console), made=out)


def _show(result: MergeResult, console: Console) -> None:
    columns = ("adapter", "kind", "rank", "alpha", "weight", "tensors")
    rows = [(a.path, a.kind, a.rank, a.alpha, a.weight, a.tensors) for a in result.adapters]
    console.print(table(f"Merged into {result.output}", columns, rows))
    facts: list[tuple[str, object]] = [
        ("tensors changed", result.tensors_changed),
        ("tensors copied unchanged", result.tensors_copied),
        ("written", size_text(result.bytes_written)),
        ("seconds", f"{result.seconds:.1f}"),
        ("peak memory", size_text(result.peak_memory_bytes)),
        ("of which above the start", size_text(result.memory_above_start_bytes)),
        ("tokenizer files from", result.tokenizer_from),
    ]
    if result.nf4_rounded:
        facts.insert(1, ("of which rounded to NF4", result.nf4_rounded))
    if result.untied:
        facts.append(("embedding and lm_head", "untied: the adapter makes them differ"))
    if result.vocabulary is not None:
        facts.append(("new vocabulary size", result.vocabulary))
    console.print(table("", ("", ""), facts))
