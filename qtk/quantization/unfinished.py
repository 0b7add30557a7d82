"""How far a stopped quantization got, read from the files it left. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from qtk.checkpoint.begun import BegunWork, UnfinishedWork

WORK = ".calibration"  # spilled activations and what a stopped run leaves; removed before the directory is complete
BEGUN_NAME = "begun.json"
STATE_NAME = "state.json"
FINISHED_PATTERN = "*.finished.json"


def worth_resuming(work: Path) -> bool:
    """Whether a stopped run left a finished block, or a finished method, in `work`."""
    return any((place / STATE_NAME).is_file() or any(place.glob(FINISHED_PATTERN)) for place in _places(work))


def unfinished_quantization(work: Path) -> UnfinishedWork | None:
    """What a stopped quantization left in `work`; None where there is nothing that --resume could continue."""
    begun = BegunWork.read(work / WORK / BEGUN_NAME)
    if begun is None or not worth_resuming(work):
        return None
    return UnfinishedWork(kind="quantized-model", begun=begun, done=sum(map(_blocks, _places(work))))


def _places(work: Path) -> Iterator[Path]:
    """Where states may lie: --method auto has a directory for each method."""
    yield work / WORK
    yield from (path / WORK for path in work.glob("*") if path.is_dir())


def _blocks(place: Path) -> int:
    """The finished blocks of one method."""
    try:
        return int(json.loads((place / STATE_NAME).read_bytes())["blocks"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
