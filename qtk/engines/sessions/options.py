"""The options of `qtk generate`. Light to import: the command line reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.engines.sessions.decoding import Decoding


class GenerateOptions(BaseModel):
    """Options of a generation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(128, ge=1, description="Most new tokens for each prompt.")
    chat_format: Literal["none", "model", "codefuse"] = Field(
        "none",
        description="How the prompt is rendered: as it is, as a user's message in the model's chat template, or as one in "
        "CodeFuse's format.",
        json_schema_extra={"was": "chat"},
    )
    system: str | None = Field(None, description="A system message in front of the prompt, with --chat-format.")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the smallest set of tokens with this probability.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Seed of the draws.")
    threads: int | None = Field(
        None, ge=1, le=4096, description="Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."
    )

    def decoding(self) -> Decoding:
        """The part that every session's `generate` takes."""
        return Decoding(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
