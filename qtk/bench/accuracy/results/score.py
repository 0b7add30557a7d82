"""What every kind of score has in common, and every line of a comparison: both know how they are printed.

The models of the kinds are built when one is first used (`defer_build`): a comparison of one kind does not pay for the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Cell = str | int | float | None
Conclusion = Literal[
    "within tolerance", "within tolerance, uncertain", "beyond tolerance, uncertain", "beyond tolerance"
]
_CERTAIN = 1.96  # standard errors: two-sided 95 %


class CompareOptions(BaseModel):
    """What counts as too large a loss, and which published figures are printed beside the measured ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tolerance: float = Field(2.0, ge=0, description="Largest loss of pass@1 to accept, in percentage points.")
    likelihood_tolerance: float = Field(
        0.05, ge=0, description="Largest loss of mean log-likelihood to accept, in nats per token."
    )
    baseline: str = Field(
        "codefuse-deepseek-33b-int4",
        description="Published before and after to print beside the result: a name, a YAML file or none.",
    )


@dataclass(frozen=True)
class TaskSource:
    """Which tasks were scored. suite, name: of the suite and of its language, set or task. file, sha256: of the data."""

    suite: str
    name: str
    file: str
    sha256: str


class Score(BaseModel, ABC):
    """The score of one language or set of a suite, the base of all kinds.

    kind: by which `qtk.bench.accuracy.kinds` finds the class. name: the language, the set, or the task of
    lm-evaluation-harness. file, file_sha256: the data. limits: those that programs ran under, in words. tasks: task_id ->
    what was measured. title, columns: of the table that `rows` fills.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)
    title: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    kind: str
    suite: str
    name: str
    file: str = ""
    file_sha256: str
    limits: str = ""
    tasks: Mapping[str, Any]

    @abstractmethod
    def rows(self) -> list[tuple[Cell, ...]]:
        """The lines of a table with these `columns`."""

    @abstractmethod
    def compare(self, after: Self, options: CompareOptions) -> list[ComparedRow]:
        """This score beside a later one of the same tasks. InputError when the two cannot be compared."""


class PublishedPair(BaseModel):
    """The published pass@1 of one language before and after, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: float
    after: float


class ComparedRow(BaseModel, ABC):
    """One line of a comparison, the base of all kinds: a figure before and after over the same tasks.

    difference: after - before, paired by task, with its standard error. p_value: two-sided. tolerance: the largest loss
    that the verdict accepts, in `unit`. verdict: None where more is not better. title, columns: of the table of `cells`.
    change_axis: what a plot writes beside the differences; empty where they are not drawn.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)
    title: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    change_axis: ClassVar[str] = ""
    kind: str
    suite: str
    name: str
    tasks: int
    before: float
    after: float
    difference: float
    difference_error: float | None
    p_value: float | None
    tolerance: float
    verdict: Conclusion | None
    published: PublishedPair | None = None

    @property
    def label(self) -> str:
        """What the row is called in a sentence."""
        return f"{self.suite} {self.name}"

    @property
    def change(self) -> str:
        """The difference with its unit, as it is compared with the tolerance."""
        return f"{self.difference:+.2f} {self.unit}"

    @abstractmethod
    def cells(self) -> tuple[Cell, ...]:
        """The line of a table with these `columns`."""

    def flips(self) -> dict[str, list[str]]:
        """The tasks to print by name: "lost" and "gained" where a task is either right or wrong."""
        return {}


class ComparedRate(ComparedRow):
    """A share of tasks that were right, before and after; rates, errors and differences in percentage points.

    lost: tasks that were right before and are wrong after; gained: the other way round (with several samples a task:
    tasks whose share fell or rose, and then there is no p_value). p_value: exact McNemar. rate_axis: what a plot writes
    beside the rates.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("suite", "language", "tasks", "before %", "± SE", "after %", "± SE", "change", "± SE", "lost", "gained"),
        *("p", "verdict"),
    )
    unit: ClassVar[str] = "points"
    rate_axis: ClassVar[str] = "right (%)"
    before_error: float | None
    after_error: float | None
    lost: list[str]
    gained: list[str]

    def cells(self) -> tuple[Cell, ...]:
        before, after = (self.before, self.before_error), (self.after, self.after_error)
        numbers = (*before, *after, self.difference, self.difference_error)
        return (
            *(self.suite, self.name, self.tasks),
            *(rounded(value) for value in numbers),
            *(len(self.lost), len(self.gained), probability(self.p_value), self.verdict),
        )

    def flips(self) -> dict[str, list[str]]:
        return {"lost": self.lost, "gained": self.gained}


def percent(share: float | None) -> float | None:
    """A share between 0 and 1 as percentage points; None for None and nan."""
    return None if share is None or math.isnan(share) else 100 * share


def rounded(points: float | None) -> float | None:
    """Percentage points with the two decimals that are printed."""
    return None if points is None else round(points, 2)


def probability(value: float | None) -> str | None:
    """A p-value with two significant digits, so that a very small one is not printed as 0."""
    return None if value is None else f"{value:.2g}"


def normal_p_value(difference: float, error: float | None) -> float | None:
    """Two-sided p-value of a difference by its standard error in the normal approximation; None for an unknown error."""
    if error is None:
        return None
    return math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)


def conclusion(difference: float, error: float | None, tolerance: float) -> Conclusion:
    """The measured loss against the tolerance; uncertain while the tolerance lies within 1.96 standard errors of it.

    With an error of 0 (no task changed) the conclusion is certain about these tasks only. With an unknown error it is
    always uncertain.
    """
    distance = difference + tolerance  # above 0: within
    certain = error is not None and abs(distance) > _CERTAIN * error
    if distance >= 0:
        return "within tolerance" if certain or error == 0 else "within tolerance, uncertain"
    return "beyond tolerance" if certain else "beyond tolerance, uncertain"
