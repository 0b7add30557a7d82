"""The options of `qtk bench latency`, `qtk bench divergence` and `qtk accept`. Light to import: the command line and recipes
read them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError

PUBLISHED_SHAPES = "16/8,64/32,256/128,1024/512"
CODE = "python-stdlib-heldout"
ENGLISH = "python-docs-english"
_THREADS = "Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."


class LatencyOptions(BaseModel):
    """What `qtk bench latency` measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: str = Field(PUBLISHED_SHAPES, description="Prompt/output lengths in tokens, separated by commas.")
    batch_size: int = Field(1, ge=1, description="Rows at once.")
    warmups: int = Field(2, ge=0, description="Calls before the clock counts.")
    runs: int = Field(10, ge=1, description="Least number of calls for each shape.")
    seconds: float = Field(10.0, ge=0, description="Least time for each shape, in seconds.")
    threads: int | None = Field(None, ge=1, description=_THREADS)
    seed: int = Field(0, description="Seed of the random prompts.")


class DivergenceOptions(BaseModel):
    """What `qtk bench divergence` measures on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...] = Field(
        (CODE, ENGLISH),
        min_length=1,
        description=f"{CODE}, {ENGLISH}, or a .txt/.jsonl/.parquet file; repeatable.",
        json_schema_extra={"names": "held-out"},
    )
    rows: int = Field(16, ge=2, description="Rows of each text (two at least, for a standard error).")
    seq_len: int = Field(512, ge=2, description="Tokens in a row.")
    chat_format: Literal["model", "codefuse"] = Field(
        "model",
        description="How conversations in a file are rendered: by the model's template, or in CodeFuse's format.",
    )
    threads: int | None = Field(None, ge=1, description=_THREADS)


class AcceptOptions(BaseModel):
    """What `qtk accept` runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: str = Field(
        PUBLISHED_SHAPES, description="Shapes of the latency table; those that fit the engine's limits are run."
    )
    seconds: float = Field(10.0, ge=0, description="Least time for each shape, in seconds.")
    reference: Path | None = Field(
        None, description="The checkpoint that the engine was built from, to measure the KL divergence from it."
    )
    max_kl: float = Field(
        0.02, gt=0, description="The largest KL divergence from that checkpoint that passes, in nats per token."
    )
    tolerance: float = Field(
        0.25, gt=0, description="The largest difference that passes between logits that should be alike."
    )
    threads: int | None = Field(None, ge=1, description=_THREADS)


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
