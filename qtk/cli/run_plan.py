"""How `qtk run --dry-run` prints what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtk.cli.output import ResultConsole, table
from qtk.sizes import size_text
from qtk.wording import counted, duration_text

if TYPE_CHECKING:
    from qtk.recipes.planned_run import DryRun, PlannedStep


def show_dry_run(console: ResultConsole, found: DryRun) -> None:
    """The steps, the sources that would be fetched, and what it all comes to."""
    rows = [
        (step.step, step.status, step.why, _time(step), _size(step.memory), _size(step.written), _size(step.scratch))
        for step in found.steps
    ]
    columns = ("step", "", "because", "time", "peak memory", "written", "beside it on the disk")
    console.print(table(f"{found.recipe} into {found.directory}", columns, rows))
    for source in found.sources:
        if source.missing:
            console.print(f"{source.text}: {size_text(source.missing)} to be fetched from the hub.")
    if not found.to_do:
        console.print("Nothing is to be done.")
        return
    known = sum(step.seconds for step in found.to_do if step.seconds is not None)
    unknown = [step.step for step in found.to_do if step.seconds is None]
    beside = f", beside {', '.join(unknown)}, whose time is not known beforehand" if unknown else ""
    console.print(f"{counted(len(found.to_do), 'step')} to do: about {duration_text(known)}{beside}.")
    console.print(
        f"The disk has {size_text(found.free_disk)} free, of which {size_text(found.needed_disk)} are needed at most; "
        f"{size_text(found.available_memory)} of memory are free."
    )


def _time(step: PlannedStep) -> str | None:
    if step.seconds is None:
        return None
    text = duration_text(step.seconds)
    return f"{text} last time" if step.measured else f"at most {text}" if step.at_most else f"about {text}"


def _size(count: int | None) -> str | None:
    return size_text(count) if count else None
