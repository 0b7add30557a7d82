"""qtk doctor: what this machine can run, what is missing, how to get it."""

from __future__ import annotations

import click
from rich.console import Console

from qtk.cli.output import emit, json_option, table
from qtk.sizes import size_text


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can run, what is missing, and how to get what is missing.

    \b
    qtk doctor
    qtk doctor --json
    """
    from qtk.release.diagnosis import diagnose

    diagnosis = diagnose()

    def show(console: Console) -> None:
        m = diagnosis.machine
        gpus = m["gpus"] or "none"
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in diagnosis.gflops.items())
        machine_rows = [
            ("qtk", diagnosis.qtk_version),
            ("processor", f"{m['processor']}, {m['cores']} usable cores"),
            ("memory", f"{size_text(int(m['memory_bytes']))}, {size_text(diagnosis.memory_available_bytes)} available"),  # type: ignore[call-overload]
            ("disk", f"{size_text(diagnosis.disk_free_bytes)} free here"),
            ("system", str(m["system"])),
            ("GPU", str(gpus)),
            ("matrix products, GFLOP/s", f"{speeds}; calibration runs in {diagnosis.calibration_dtype}"),
        ]
        console.print(table("This machine", ("", ""), machine_rows))
        abilities = [(a.what, "yes" if a.possible else "no", a.why) for a in diagnosis.abilities]
        console.print(table("It can", ("", "", "because"), abilities))
        for title, present in (("Present", True), ("Missing, and needed only for the purpose named", False)):
            rows = [
                (part.name, part.purpose, part.found if present else part.get)
                for part in diagnosis.parts
                if (part.found is not None) == present
            ]
            console.print(table(title, ("", "for", "version or place" if present else "how to get it"), rows))

    emit(diagnosis, as_json, show)
