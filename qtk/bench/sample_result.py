"""What engines said when they were asked. Loads nothing that runs one, so that reports and gates read it lightly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from qtk.bench.options import SampleOptions


class SampleText(BaseModel):
    """One engine's continuation of one prompt."""

    model_config = ConfigDict(frozen=True)
    engine: str
    prompt: str
    text: str


class SampleResult(BaseModel):
    """Every engine's text for every prompt, the most likely token at each step."""

    model_config = ConfigDict(frozen=True)
    options: SampleOptions
    texts: tuple[SampleText, ...]
