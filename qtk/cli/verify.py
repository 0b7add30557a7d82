"""qtk verify: a directory and its whole chain of inputs against the manifests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.errors import GateFailed, listing

if TYPE_CHECKING:
    from qtk.checkpoint.manifest import Finding

_STATUSES = ("ok", "changed", "missing", "unrecorded", "input absent", "not carried")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--key",
    metavar="PUB",
    type=click.Path(path_type=Path),
    help="Public key (OpenSSH) that must have signed the bundle DIRECTORY; without it a signature is not looked at.",
)
@json_option
def command(directory: Path, key: Path | None, as_json: bool) -> None:
    """Check DIRECTORY's files, and those of every input that can be found, against the manifests. DIRECTORY is an output of
    qtk, a file in one, a run, a bundle, or a folder of these. A bundle is checked by what it holds alone.

    Exit code 3 when a file was changed, is missing, or is not recorded, or a signature does not verify. Inputs that are not
    on this machine, or that a bundle does not carry, are listed, but do not count as failures.

    \b
    qtk verify engine
    qtk verify runs/smollm2-135m --json
    qtk verify .
    qtk verify bundle --key release.pub
    """
    from qtk.recipes.finished_run import verify_path

    findings = verify_path(directory, key)
    bad = [finding for finding in findings if finding.bad]
    verdict = _verdict(findings, signed=key is not None)

    def show(console: ResultConsole) -> None:
        by_directory: dict[str, Counter[str]] = {}
        for finding in findings:
            by_directory.setdefault(finding.directory, Counter())[finding.status] += 1
        rows = [
            (os.path.relpath(name), *(n[status] or None for status in _STATUSES)) for name, n in by_directory.items()
        ]
        not_carried = [finding for finding in findings if finding.status == "not carried"]
        console.print(table(f"Chain of {directory}: files", ("directory", *_STATUSES), rows))
        for finding in not_carried:
            console.print(f"Not carried: {Path(finding.directory).name} {finding.file}")
        console.print(f"{verdict}.")

    result = {
        "directory": str(directory),
        "verified": not bad,
        "verdict": verdict,
        "findings": [finding.model_dump() for finding in findings],
    }
    failed = GateFailed(
        f"{directory} does not match its manifests:\n"
        + listing(f"{finding.status}: {Path(finding.directory) / finding.file}" for finding in bad)
    )
    emit(result, as_json, show, failed if bad else None)


def _verdict(findings: Sequence[Finding], *, signed: bool) -> str:
    """All findings in one line. signed: a signature was checked, and verified."""
    counts = Counter(finding.status for finding in findings)
    absent = counts["input absent"]
    elsewhere = f", {_count(absent, 'input is', 'inputs are')} not on this machine" if absent else ""
    if left_out := counts["not carried"]:
        elsewhere += f", {_count(left_out, 'part of the chain is', 'parts of the chain are')} not carried"
    elsewhere += ", signature verified" if signed else ""
    if not any(finding.bad for finding in findings):
        return f"Verified: {_count(counts['ok'], 'file', 'files')}{elsewhere}"
    bad = [
        _count(counts["changed"], "file changed", "files changed"),
        _count(counts["missing"], "file missing", "files missing"),
        _count(counts["unrecorded"], "file not recorded", "files not recorded"),
    ]
    return f"CHANGED: {', '.join(text for text in bad if not text.startswith('0 '))}; {counts['ok']} as recorded{elsewhere}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
