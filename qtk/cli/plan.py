"""qtk plan: does an engine fit its GPU, and how fast could it be?"""

from __future__ import annotations

from pathlib import Path

import click

from qtk.cli.memory import show_memory
from qtk.cli.options import build, old_spelling, options_from
from qtk.cli.output import emit, json_option
from qtk.engines.options import PlanOptions
from qtk.errors import GateFailed, listing


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@options_from(PlanOptions, skip=("prepare_only", "accuracy_level", "lm_head_bits", "dtype", "edgellm_bin"))
@old_spelling("--no-symmetric", "--asym", flag=True)
@json_option
def command(model: Path, as_json: bool, **values: object) -> None:
    """Say whether an engine fits a GPU, with a table of its parts, and the bound on its speed. A directory with config.json,
    or an id of the hub, is enough.

    \b
    qtk plan codefuse-deepseek-33b --gpu a10 --bits 4 --group-size 128
    qtk plan int4 --gpu l4 --max-input-len 4096 --json
    """
    from qtk.engines.plan import plan_engine

    plan = plan_engine(model, build(PlanOptions, values))
    title = f"{plan.model}: {plan.parameters / 1e9:.2f} billion parameters, {plan.weights}"
    failed = None
    if plan.refusals:
        failed = GateFailed(f"{plan.model} cannot become this engine:\n{listing(plan.refusals)}")
    emit(plan, as_json, lambda console: show_memory(console, title, plan.memory), failed)
