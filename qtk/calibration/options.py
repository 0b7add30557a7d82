"""Which text a model is calibrated on, and how much of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError


class CalibrationOptions(BaseModel):
    """Options of the calibration text: shared by the command line, recipes and manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    calibration: str = Field(
        "python-stdlib",
        description="python-stdlib, a .txt/.jsonl/.parquet file, or a data set id (needs the extra 'datasets').",
        json_schema_extra={"names": "calibration"},
    )
    samples: int = Field(128, ge=1, le=1_000_000, description="Rows of calibration text.")
    seq_len: int | None = Field(
        None,
        ge=8,
        le=1_048_576,
        description="Tokens in a row (default: 2048, or the model's context where that is shorter).",
    )
    chat_format: Literal["none", "model", "codefuse"] = Field(
        "model",
        description="How conversations are rendered: none (plain text), by the model's chat template, or by CodeFuse's "
        "(<s>human, <s>bot).",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of everything random: the choice of rows, tuning.")

    def row_length(self, context: int) -> int:
        """Tokens in a row for a model of this context length. InputError when more were asked for than the model has."""
        if self.seq_len is None:
            return min(2048, context)
        if self.seq_len > context:
            raise InputError(f"--seq-len {self.seq_len} is longer than the model's context of {context} tokens.")
        return self.seq_len
