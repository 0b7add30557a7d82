"""How far a stopped accuracy run got, read from the lines that it left."""

from __future__ import annotations

from pathlib import Path

from qtk.checkpoint.begun import BegunWork, UnfinishedWork

BEGUN_NAME = "run.json"


def unfinished_accuracy(partial: Path) -> UnfinishedWork | None:
    """What a stopped run left in `partial`; None where there is nothing that --resume could continue."""
    kept = kept_lines(partial)
    if not kept:
        return None
    begun = BegunWork.read(partial / BEGUN_NAME) or BegunWork(facts={}, unit="line")
    return UnfinishedWork(kind="accuracy", begun=begun, done=sum(kept.values()), details=said(kept))


def kept_lines(partial: Path) -> dict[str, int]:
    """File of finished answers or verdicts -> its lines."""
    lines = {path.name: path.read_bytes().count(b"\n") for path in sorted(partial.glob("*.jsonl"))}
    return {name: count for name, count in lines.items() if count}


def said(kept: dict[str, int]) -> str:
    """The kept lines in words."""
    return ", ".join(f"{count} lines of {name}" for name, count in kept.items())
