"""What an adapter knows of the base that it was trained on, where qtk trained it: its name, a fingerprint, how it was rounded.

Stands in training.json beside the adapter's files. An adapter from elsewhere has no such file, and says nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtk.checkpoint.json_file import parse_json
from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError

RECORD_NAME = "training.json"
_SAMPLE_ROWS = 4


class TrainedBase(BaseModel):
    """The base as training saw it. name: as its config or directory states it. fingerprint: of `fingerprint`. rounding:
    "none"; "nf4" (QLoRA: every linear but lm_head); or "deployed": the codes of a quantized checkpoint, in `container`."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    rounding: Literal["none", "nf4", "deployed"] = "none"
    container: str = ""


def trained_base(adapter: Path) -> TrainedBase | None:
    """What an adapter directory says of its base; None where it says nothing. InputError for a damaged record."""
    path = adapter / RECORD_NAME
    if not path.is_file():
        return None
    stated = parse_json(path.read_bytes(), path).get("base")
    if stated is None:
        return None
    try:
        return TrainedBase.model_validate(stated)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over the first rows of every tensor of the blocks, with names and dtypes: what any other adapter that is merged in
    would change, in a moment even for a large model."""
    digest = hashlib.sha256()
    for name in sorted(name for name in checkpoint.names if ".layers." in name or ".h." in name):
        info = checkpoint.info(name)
        digest.update(f"{name} {info.dtype_name} {list(info.shape)}\n".encode())
        if info.shape and 0 not in info.shape:
            import torch

            rows = checkpoint.rows(name, 0, min(_SAMPLE_ROWS, info.shape[0])).contiguous()
            digest.update(rows.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
