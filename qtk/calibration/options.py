"""Which text a model is calibrated on, and how much of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CalibrationOptions(BaseModel):
    """Options of the calibration text: shared by the command line, recipes and manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: str = Field(
        "python-stdlib",
        description="python-stdlib, a .txt/.jsonl/.parquet file, or a data set id (needs the extra 'datasets').",
    )
    samples: int = Field(128, ge=1, description="Rows of calibration text.")
    seq_len: int = Field(2048, ge=8, description="Tokens in a row.")
    chat_format: Literal["model", "codefuse"] = Field(
        "model", description="How conversations are rendered: the model's template, or CodeFuse's <s>human/<s>bot."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random: the choice of rows, tuning.")
