"""CoBa's memory: the losses of held-back samples over the steps, their trends, and the weights that follow (arXiv 2410.06741)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from qtk.finetuning.losses import coba_weights, slope
from qtk.finetuning.options import FinetuneOptions


class CobaMemory(BaseModel):
    """first: each task's held-back loss before training, which later losses are divided by. ratios: of each task, at each look
    (0: absent). slopes: of each task's ratios, and largest_slopes: of the largest ratio, since the warm-up ended."""

    model_config = ConfigDict(frozen=True)

    first: tuple[float, ...]
    weights: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...] = ()
    slopes: tuple[tuple[float, ...], ...] = ()
    largest_slopes: tuple[float, ...] = ()
    factor: float = 1.0


def first_look(losses: Sequence[float | None]) -> CobaMemory:
    """The memory before training. losses: of every task on all held-back rows."""
    assert all(losses), "every task has held-back rows"
    return CobaMemory(first=tuple(loss or 1.0 for loss in losses), weights=(1.0,) * len(losses))


def after_look(memory: CobaMemory, losses: Sequence[float | None], step: int, options: FinetuneOptions) -> CobaMemory:
    """The memory after `step` steps and another look. losses: of each task in the sample, None where it is absent."""
    ratio = tuple((loss or 0.0) / first for loss, first in zip(losses, memory.first, strict=True))
    ratios = (*memory.ratios, ratio)[-options.coba_history_length :]
    memory = memory.model_copy(update={"ratios": ratios})
    if step < options.coba_warmup_steps:
        return memory
    kept = max(1, options.coba_history_length - options.coba_warmup_steps + 1)
    now = tuple(slope([seen[task] for seen in ratios]) for task in range(len(memory.first)))
    slopes = (*memory.slopes, now)[-kept:]
    largest = (*memory.largest_slopes, slope([max(seen) for seen in ratios]))
    weights, factor = coba_weights(list(zip(*slopes, strict=True)), largest, options.coba_tau)
    return memory.model_copy(
        update={"slopes": slopes, "largest_slopes": largest, "weights": tuple(weights), "factor": factor}
    )
