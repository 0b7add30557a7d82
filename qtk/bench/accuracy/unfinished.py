"""How far a stopped accuracy run got, read from the lines that it left."""

from __future__ import annotations

from pathlib import Path

from qtk.bench.accuracy.shard_rows import row_files
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
    """File of finished answers or verdicts -> its lines, and those of shards that it does not have yet."""
    kept = {}
    for name, paths in row_files(partial).items():
        own = [line for path in paths if path.parent == partial for line in _lines(path)]
        others = {line for path in paths if path.parent != partial for line in _lines(path)}
        kept[name] = len(own) + len(others - set(own))
    return {name: count for name, count in kept.items() if count}


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def said(kept: dict[str, int]) -> str:
    """The kept lines in words."""
    return ", ".join(f"{count} lines of {name}" for name, count in kept.items())
