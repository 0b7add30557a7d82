"""The options of `qtk plan --prepare`. Light to import."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PreparationOptions(BaseModel):
    """What `qtk plan --prepare` assumes of the steps: named as in `qtk quantize`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(128, ge=1, description="With --prepare: rows of calibration text.")
    seq_len: int | None = Field(None, ge=8, description="With --prepare: tokens in a row (default as in quantize).")
    effort: Literal["fast", "default"] = Field("default", description="With --prepare: fast or default.")
    rank: int = Field(64, ge=1, description="With --prepare: rank of the adapter that is merged, on all linears.")
    memory: float | None = Field(None, gt=0, description="With --prepare: GB that quantize may take (its --memory).")
