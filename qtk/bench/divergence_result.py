"""What a measurement of divergence found. Loads nothing that measures, so that reports and gates read it lightly."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.bench.options import DivergenceOptions


class Estimate(BaseModel):
    """A mean over tokens and its standard error, clustered by row."""

    model_config = ConfigDict(frozen=True)
    mean: float
    standard_error: float


class TextDivergence(BaseModel):
    """The figures of one text. KL(reference || model) in nats per token; quantiles over tokens."""

    model_config = ConfigDict(frozen=True)
    text: str
    rows: int
    tokens: int
    kl: Estimate
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: Estimate
    perplexity_reference: float
    perplexity: float
    # Mean difference of the log-likelihood losses (model - reference), paired by token: log of the perplexity ratio.
    loss_increase: Estimate
    tokens_sha256: str


class DivergenceResult(BaseModel):
    """The result of `qtk bench divergence`: one entry for each text, then all of them pooled. from_checkpoint: an engine's
    divergence from the checkpoint that it was built from, which its arithmetic adds to the quantization."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["divergence"] = "divergence"
    qtk_version: str
    model: str
    reference: str
    options: DivergenceOptions
    texts: tuple[TextDivergence, ...]
    pooled: TextDivergence
    from_checkpoint: TextDivergence | None = None
    engine_settings: dict[str, object] = Field(default_factory=dict)
    seconds: float
    machine: dict[str, object]
