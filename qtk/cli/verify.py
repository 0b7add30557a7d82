"""qtk verify: a directory and its whole chain of inputs against the manifests."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click

from qtk.cli.output import emit, json_option, table
from qtk.errors import GateFailed, listing


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Check DIRECTORY's files, and those of every input that can be found, against the manifests.

    Exit code 3 when a file was changed, is missing, or is not recorded. Inputs that are not on this machine are
    listed, but do not count as failures.

    \b
    qtk verify engine
    qtk verify runs/smollm2-135m --json
    """
    from qtk.checkpoint.manifest import verify_chain
    from qtk.recipes.finished_run import is_run, verify_run

    findings = verify_run(directory) if is_run(directory) else verify_chain(directory)
    bad = [finding for finding in findings if finding.bad]
    by_directory: dict[str, Counter[str]] = {}
    for finding in findings:
        by_directory.setdefault(finding.directory, Counter())[finding.status] += 1
    statuses = ("ok", "changed", "missing", "unrecorded", "input absent")
    rows = [(os.path.relpath(name), *(counts[status] for status in statuses)) for name, counts in by_directory.items()]
    failed = None
    if bad:
        failed = GateFailed(
            f"{directory} does not match its manifests:\n"
            + listing(f"{finding.status}: {Path(finding.directory) / finding.file}" for finding in bad)
        )
    emit(
        {"directory": str(directory), "verified": not bad, "findings": [f.model_dump() for f in findings]},
        as_json,
        lambda console: console.print(table(f"Chain of {directory}: files", ("directory", *statuses), rows)),
        failed,
    )
