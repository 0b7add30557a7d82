"""One line of a comparison: a rate before and after over the same tasks, the flips, and whether too much was lost."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

_CERTAIN = 1.96  # standard errors: two-sided 95 %
Verdict = Literal["within tolerance", "within tolerance, uncertain", "beyond tolerance, uncertain", "beyond tolerance"]


class PublishedPair(BaseModel):
    """One language's published pass@1 before and after, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: float
    after: float


class LanguageComparison(BaseModel):
    """One language of one suite; all rates and differences in percentage points.

    lost: tasks that passed before and fail after; gained: the other way round (with several samples a task: whose share
    fell or rose, and then there is no p_value). difference: after - before over the same tasks, with the standard error
    of the paired difference. p_value: exact McNemar.
    """

    model_config = ConfigDict(frozen=True)
    suite: str
    language: str
    tasks: int
    before: float
    before_error: float | None
    after: float
    after_error: float | None
    difference: float
    difference_error: float | None
    lost: list[str]
    gained: list[str]
    p_value: float | None
    verdict: Verdict
    published: PublishedPair | None = None


def points(share: float) -> float | None:
    """A share between 0 and 1 as percentage points; None for nan."""
    return None if math.isnan(share) else 100 * share


def verdict(difference: float, error: float | None, tolerance: float) -> Verdict:
    """The measured loss against the tolerance; uncertain while the tolerance lies within 1.96 standard errors of it.

    An error of 0 (nothing flipped) is certain about these tasks only; of an unknown error nothing is certain.
    """
    distance = difference + tolerance  # above 0: within
    sure = error is not None and abs(distance) > _CERTAIN * error
    if distance >= 0:
        return "within tolerance" if sure or error == 0 else "within tolerance, uncertain"
    return "beyond tolerance" if sure else "beyond tolerance, uncertain"
