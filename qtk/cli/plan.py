"""qtk plan: does an engine fit its GPU, and how fast could it be?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.cli.known_names import completer
from qtk.cli.memory import show_memory
from qtk.cli.next_step import after_plan
from qtk.cli.options import build, old_spelling, options_from
from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.engines.options import PlanOptions
from qtk.engines.preparation_options import PreparationOptions
from qtk.errors import GateFailed, listing
from qtk.sizes import gpu_size_text, size_text
from qtk.wording import counted, duration_text

if TYPE_CHECKING:
    from qtk.cli.tables import Sheet
    from qtk.engines.plan import EnginePlan

_ALL = "all"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    default=("cpu",),
    show_default=True,
    shell_complete=completer("gpus", also=(_ALL,)),
    help="What the engine runs on: a name from `qtk gpus`, cpu, or the YAML file of a profile. Repeatable, and all for "
    "every GPU that qtk knows: one line for each.",
)
@options_from(PlanOptions, skip=("gpu", "prepare_only", "accuracy_level", "lm_head_bits", "dtype", "edgellm_bin"))
@click.option(
    "--prepare", is_flag=True, help="Predict memory, disk and time of merge, quantize and build on this machine."
)
@options_from(PreparationOptions)
@old_spelling("--no-symmetric", "--asym", flag=True)
@json_option
def command(model: Path, gpus: tuple[str, ...], prepare: bool, as_json: bool, **values: Any) -> None:
    """Say whether an engine fits a GPU, with a table of its parts, and the bound on its speed. A directory with config.json,
    or an id of the hub, is enough. Exit 3 when no GPU asked about can have the engine, or the disk is too small for --prepare.

    \b
    qtk plan codefuse-deepseek-33b --gpu a10 --bits 4 --group-size 128
    qtk plan int4 --gpu l4 --max-input-len 4096 --json
    qtk plan int4 --gpu all
    qtk plan int4 --gpu l4 --gpu a10 --gpu my-gpu.yaml
    qtk plan codefuse-deepseek-33b --prepare --samples 32 --seq-len 512
    """
    assumed = {name: values.pop(name) for name in PreparationOptions.model_fields}
    if prepare:
        _show_preparation(model, build(PreparationOptions, assumed), as_json)
        return
    from qtk.engines.plan import plan_engine
    from qtk.targets.gpu import gpu_profiles

    known = [profile.name for profile in gpu_profiles() if not profile.is_cpu] if _ALL in gpus else []
    names = [name for gpu in gpus for name in (known if gpu == _ALL else [gpu])]
    plans = [plan_engine(model, build(PlanOptions, {**values, "gpu": name})) for name in dict.fromkeys(names)]
    first = plans[0]
    title = f"{first.model}: {first.parameters / 1e9:.3g} billion parameters, {first.weights}"
    if len(plans) == 1:

        def show_one(console: ResultConsole) -> None:
            show_memory(console, title, first.memory)
            if not first.refusals:
                backend = None if values["backend"] == "auto" else first.backend
                console.print_command("Next", after_plan(model, names[0], backend))

        refused = GateFailed(f"{first.model} cannot become this engine:\n{listing(first.refusals)}")
        emit(first, as_json, show_one, refused if first.refusals else None)
        return
    data = {"model": first.model, "parameters": first.parameters, "plans": [plan.model_dump() for plan in plans]}

    def show(console: ResultConsole) -> None:
        console.print(_comparison(title, plans))
        for plan in plans:
            for reason in plan.refusals:
                console.print(f"not {plan.gpu}: {reason}")

    none = GateFailed(f"{first.model} cannot become an engine for any of {len(plans)} GPUs.")
    emit(data, as_json, show, none if all(plan.refusals for plan in plans) else None)


def _show_preparation(model: Path, options: PreparationOptions, as_json: bool) -> None:
    from qtk.engines.preparation import plan_preparation

    found = plan_preparation(model, options)
    rows = [
        (step.step, duration_text(step.seconds), *map(size_text, (step.memory, step.written, step.scratch)))
        for step in found.steps
    ]
    columns = ("step", "time", "peak memory", "written", "beside it on the disk")

    def show(console: ResultConsole) -> None:
        console.print(table(f"Preparing {found.model} on this machine", columns, rows))
        console.print(
            f"With {counted(found.rates.threads, 'thread')}. The disk has {size_text(found.free_disk)} free, of which "
            f"{size_text(found.needed_disk)} are needed at most."
        )

    too_little = GateFailed(
        f"The disk has {size_text(found.free_disk)} free, and the steps take up to {size_text(found.needed_disk)}. Free some "
        "room, call `qtk plan` where the results are to be written, or give fewer rows (--samples, --seq-len)."
    )
    emit(found, as_json, show, too_little if found.needed_disk > found.free_disk else None)


def _comparison(title: str, plans: Sequence[EnginePlan]) -> Sheet:
    """One row a GPU."""
    rows = [
        (
            plan.gpu,
            "no" if plan.refusals else "yes",
            gpu_size_text(plan.memory.needed_bytes),
            None if plan.memory.available_bytes is None else gpu_size_text(plan.memory.available_bytes * plan.gpus),
            plan.memory.decode_bound_tokens_per_s,
            plan.backend,
        )
        for plan in plans
    ]
    return table(title, ("--gpu", "fits", "needs", "has", "at most tokens/s", "backend"), rows)
