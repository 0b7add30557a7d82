"""How far a stopped training got, read from the files it left. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

from qtk.checkpoint.begun import BegunWork, UnfinishedWork

WORK = ".training"  # checkpoints and the best adapter so far; removed before the directory is complete
BEGUN_NAME = "begun.json"
STATE_NAME = "state.json"


def unfinished_training(partial: Path) -> UnfinishedWork | None:
    """What a stopped training left in `partial`; None where there is no checkpoint to go on from."""
    begun = BegunWork.read(partial / WORK / BEGUN_NAME)
    try:
        done = int(json.loads((partial / WORK / STATE_NAME).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if begun is None else UnfinishedWork(kind="trained-adapter", begun=begun, done=done)
