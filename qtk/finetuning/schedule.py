"""The learning rate as a function of the step: linear warm-up, then a cosine that ends on a floor."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """total: steps in all, counted as updates of the weights; warmup: the first of them; peak, floor: learning rates.

    MFTCoder counts in ticks of its launcher, so that its cosine depends on accumulation and devices, and floors the warm-up
    too. Here the warm-up rises from peak / warmup, and the floor holds from its end on.
    """

    total: int
    warmup: int
    peak: float
    floor: float

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        # The last step is one before the cosine's zero, so that every step learns.
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return max(self.floor, self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def warmup_steps(warmup: float, total: int) -> int:
    """The steps of a warm-up that is given as a share of all steps (below 1) or as their number."""
    return min(total, round(warmup * total) if warmup < 1 else round(warmup))
