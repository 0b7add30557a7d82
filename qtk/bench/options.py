"""The options of `qtk bench latency`, `qtk bench divergence`, `qtk accept` and of samples of text. Light to import: the command
line and recipes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError

PUBLISHED_SHAPES = "16/8,64/32,256/128,1024/512"
# The largest difference of a logit between two ways to the same token that `qtk accept` lets pass. In float32 only the order
# of sums differs: 0.0001 at most with SmolLM2-135M, INT4, at accuracy level 1. The rest is room for float16 on a GPU.
LOGIT_TOLERANCE = 0.25
# At accuracy level 4 a difference in the last bit moves an activation to the next of 255 steps, and every layer multiplies
# that. Between decoding step by step and scoring as a whole (the same model, INT4 by GPTQ and by rounding, 16 prompts), all
# logits differed by 1.2 in the median of the prompts and by 1.7 at most, where their deviation is 6 to 8; a chosen token lay
# 0.44 below the best at most. One wrong token in a prompt changes the last position's logits by 3 to 6.
ROUNDED_LOGIT_TOLERANCE = 2.5
ROUNDED_CHOICE_TOLERANCE = 1.0
CODE = "python-stdlib-heldout"
ENGLISH = "python-docs-english"
_THREADS = "Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."


class LatencyOptions(BaseModel):
    """What `qtk bench latency` measures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shapes: str = Field(PUBLISHED_SHAPES, description="Prompt/output lengths in tokens, separated by commas.")
    batch_size: int = Field(1, ge=1, le=4096, description="Rows at once.")
    warmups: int = Field(1, ge=0, le=1_000_000, description="Calls of each shape before the clock counts.")
    runs: int = Field(
        5, ge=1, le=1_000_000, description="Least number of calls for each shape and engine, however long they take."
    )
    seconds: float = Field(
        10.0, ge=0, description="Time for each shape and engine, in seconds: as many calls as fit into it."
    )
    threads: int | None = Field(None, ge=1, le=4096, description=_THREADS)
    seed: int = Field(
        0,
        description="Seed of the random prompts; of an endpoint, whose prompts are always new, of the times of requests.",
    )


class SampleOptions(BaseModel):
    """What a run asks its engines, so that their texts stand side by side in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompts: tuple[str, ...] = Field(("def fibonacci(n):",), min_length=1, description="Texts to continue.")
    max_new_tokens: int = Field(24, ge=1, description="Most new tokens for each prompt.")
    chat_format: Literal["none", "model", "codefuse"] = Field(
        "none", description="How prompts are rendered: as they are, by the model's template, or in CodeFuse's format."
    )
    threads: int | None = Field(None, ge=1, le=4096, description=_THREADS)


class DivergenceOptions(BaseModel):
    """What `qtk bench divergence` measures on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: tuple[str, ...] = Field(
        (CODE, ENGLISH),
        min_length=1,
        description=f"{CODE}, {ENGLISH}, or a .txt/.jsonl/.parquet file; repeatable.",
        json_schema_extra={"names": "held-out"},
    )
    rows: int = Field(16, ge=2, le=1_000_000, description="Rows of each text (two at least, for a standard error).")
    seq_len: int = Field(512, ge=2, le=1_048_576, description="Tokens in a row.")
    chat_format: Literal["model", "codefuse"] = Field(
        "model",
        description="How conversations in a file are rendered: by the model's template, or in CodeFuse's format.",
    )
    threads: int | None = Field(None, ge=1, le=4096, description=_THREADS)


class AcceptOptions(BaseModel):
    """What `qtk accept` runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shapes: str = Field(
        PUBLISHED_SHAPES, description="Shapes of the latency table; those that fit the engine's limits are run."
    )
    seconds: float = Field(10.0, ge=0, description="Time for each shape, in seconds: as many calls as fit into it.")
    reference: Path | None = Field(
        None, description="The checkpoint that the engine was built from, to measure the KL divergence from it."
    )
    max_kl: float = Field(
        0.02, gt=0, description="The largest KL divergence from that checkpoint that passes, in nats per token."
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="The largest difference that passes between logits that should be alike. Default: "
        f"{LOGIT_TOLERANCE:g}; for a CPU engine of an INT4 model at accuracy level 4, which rounds activations to 8 bits, "
        f"{ROUNDED_CHOICE_TOLERANCE:g} for the logit of a chosen token and {ROUNDED_LOGIT_TOLERANCE:g} for all logits of a row.",
    )
    threads: int | None = Field(None, ge=1, le=4096, description=_THREADS)


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """ "16/8,64/32" -> [(16, 8), (64, 32)]. InputError naming every entry that is not a pair of positive numbers."""
    shapes, unreadable = [], []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        first, _, second = entry.partition("/")
        if first.isdigit() and second.isdigit() and int(first) and int(second):
            shapes.append((int(first), int(second)))
        else:
            unreadable.append(repr(entry))
    if unreadable or not shapes:
        pairs = ", ".join(unreadable) or "nothing"
        raise InputError(f"--shapes takes INPUT/OUTPUT pairs such as 64/32, not {pairs}.")
    return shapes
