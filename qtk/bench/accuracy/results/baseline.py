"""A published comparison, printed beside a measured one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.score import PublishedPair
from qtk.shipped import find_yaml, read_yaml

_ROOM = "bench/baselines"


class Baseline(BaseModel):
    """A published comparison: pass@1 of each language before and after, in percent. gpu, figures: what gates are held against
    besides (see qtk/release/gate_baselines.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    summary: str
    suite: str
    tasks: int
    scores: dict[str, PublishedPair]
    gpu: str | None = None
    figures: dict[str, dict[str, float]] = {}


def load_baseline(name: str) -> Baseline | None:
    """A published comparison by name or YAML path; None for "none"."""
    if name == "none":
        return None
    return read_yaml(find_yaml(_ROOM, name, "baseline"), Baseline, "baseline")
