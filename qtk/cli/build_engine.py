"""qtk build-engine: a model directory becomes an engine directory."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from qtk.cli.memory import show_memory
from qtk.cli.options import build, options_from, output_options
from qtk.cli.output import emit, json_option, table
from qtk.engines.options import BuildOptions
from qtk.sizes import size_text
from qtk.wording import counted


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@output_options("The engine directory.")
@options_from(BuildOptions)
@json_option
def command(model: Path, out: Path, overwrite: bool, as_json: bool, **values: object) -> None:
    """Build an inference engine from a float or quantized model (a directory or an id of the hub), for a GPU or the CPU; or
    from a directory that --prepare-only wrote, with the options of the preparation.

    \b
    qtk build-engine int4 -o engine --gpu cpu
    qtk build-engine int4 -o engine-a10 --gpu a10 --max-input-len 1024 --max-output-len 512
    qtk build-engine int4 -o prepared --gpu a10 --backend tensorrt-edgellm --prepare-only
    qtk build-engine prepared -o engine-a10
    """
    from qtk.engines.build import build_engine

    engine = build_engine(model, out, build(BuildOptions, values), overwrite=overwrite)
    limits, quantization = engine.limits, engine.quantization
    rows = [
        ("engine" if engine.built else "directory", str(out)),
        ("runs on", f"{engine.gpu} ({engine.backend})"),
        ("model", f"{engine.architecture}, {counted(engine.num_layers, 'block')}"),
        ("linears", f"{quantization.bits} bits, group {quantization.group_size}" if quantization else engine.dtype),
        ("output head", f"{engine.lm_head_bits} bits"),
        ("computes in", engine.dtype),
        ("limits", f"{limits.max_input_len} + {limits.max_output_len} tokens, {counted(limits.max_batch, 'row')}"),
        ("size", size_text(sum(stage.bytes for stage in engine.stages))),
        *[("note", note) for note in engine.notes],
    ]

    def show(console: Console) -> None:
        console.print(table("Engine" if engine.built else "Prepared, not built yet", ("", ""), rows))
        if engine.memory is not None:
            show_memory(console, f"Memory on {engine.memory.gpu}", engine.memory)

    data = engine.model_dump(mode="json")
    if not any(engine.windows):
        data["windows"] = None  # no layer has one; engine.json says so layer by layer
    emit(data, as_json, show, made=out)
