"""qtk gpus: the GPUs that engines can be built for."""

from __future__ import annotations

import click

from qtk.cli.output import emit, json_option, table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the GPUs that engines can be built for, with what each can do.

    \b
    qtk gpus
    qtk gpus --json
    """
    from qtk.targets.gpu import gpu_profiles

    profiles = gpu_profiles()
    columns = ("--gpu", "SM", "memory GiB", "GB/s", "fp16 TFLOPS", "backend")
    rows = [
        (p.name, p.sm, p.memory_gib, p.bandwidth_gb_s, p.fp16_tflops, next(iter(p.backends), None)) for p in profiles
    ]
    emit(
        {"gpus": [p.model_dump(mode="json") for p in profiles]},
        as_json,
        lambda console: console.print(table("GPU profiles", columns, rows)),
    )
