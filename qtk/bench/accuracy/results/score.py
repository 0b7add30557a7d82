"""What every kind of score has in common, and every line of a comparison: both know how they are printed.

The models of the kinds are built when one is first used (`defer_build`): a comparison of one kind does not pay for the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.bench.accuracy.results.statistics import Limits, rate_limits

Cell = str | int | float | None
Conclusion = Literal["within tolerance", "beyond tolerance", "too few tasks to tell"]


class CompareOptions(BaseModel):
    """What counts as too large a loss, and which published figures are printed beside the measured ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tolerance: float = Field(
        2.0,
        ge=0,
        description="Largest loss of pass@1 to accept, in percentage points. 164 tasks can show 1.6 at best, where none "
        "changes, and about 4 where nine do; 820 tasks show 0.8 then.",
    )
    likelihood_tolerance: float = Field(
        0.05, ge=0, description="Largest loss of mean log-likelihood to accept, in nats per token."
    )
    baseline: str = Field(
        "codefuse-deepseek-33b-int4",
        description="Published before and after to print beside the result: a name, a YAML file or none.",
    )


@dataclass(frozen=True)
class TaskSource:
    """Which tasks were scored. suite, name: of the suite and of its language, set or task. file, sha256: of the data. whole:
    how many tasks the data holds, where that is known."""

    suite: str
    name: str
    file: str
    sha256: str
    whole: int | None = None


class Score(BaseModel, ABC):
    """The score of one language or set of a suite, the base of all kinds.

    kind: by which `qtk.bench.accuracy.kinds` finds the class. name: the language, the set, or the task of
    lm-evaluation-harness. file, file_sha256: the data. whole: how many tasks the data holds (None: not recorded). limits:
    those that programs ran under, in words. tasks: task_id -> what was measured. title, columns: of the table that `rows`
    fills.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)
    title: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    kind: str
    suite: str
    name: str
    file: str = ""
    file_sha256: str
    whole: int | None = None
    limits: str = ""
    tasks: Mapping[str, Any]

    @property
    def counted(self) -> Cell:
        """How many tasks were scored, and of how many where it was not all of them."""
        return tasks_of(len(self.tasks), self.whole)

    @property
    def label(self) -> str:
        """What the score is called in a sentence."""
        return f"{self.suite} {self.name}"

    @property
    def forged(self) -> bool:
        """Whether it shows that passes were forged."""
        return False

    @abstractmethod
    def rows(self) -> list[tuple[Cell, ...]]:
        """The lines of a table with these `columns`."""

    @abstractmethod
    def compare(self, after: Self, options: CompareOptions) -> list[ComparedRow]:
        """This score beside a later one of the same tasks. InputError when the two cannot be compared."""

    @classmethod
    def compare_pooled(cls, pairs: Sequence[tuple[Self, Self]], options: CompareOptions) -> list[ComparedRow]:
        """Several scores of one suite, before and after, as one: rows beside those of each; none where that means nothing."""
        return []


class PublishedPair(BaseModel):
    """The published pass@1 of one language before and after, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: float
    after: float


class ComparedRow(BaseModel, ABC):
    """One line of a comparison, the base of all kinds: a figure before and after over the same tasks.

    whole: how many tasks the data holds (None: not recorded). difference: after - before, paired by task, with its standard
    error. low, high: the limits of the difference that decide the verdict, each of which holds with 95 % confidence (None
    with too few tasks for any). p_value: two-sided. tolerance: the largest loss that the verdict accepts, in `unit`.
    verdict: None where more is not better. title, columns: of the table of `cells`. change_axis: what a plot writes beside
    the differences; empty where they are not drawn.
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
    whole: int | None = None
    before: float
    after: float
    difference: float
    difference_error: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None
    tolerance: float
    verdict: Conclusion | None
    published: PublishedPair | None = None

    @field_validator("verdict", mode="before")
    @classmethod
    def _of_today(cls, verdict: object) -> object:
        """Until version 0.1 a verdict that the tasks did not settle leant to one side, "uncertain"."""
        return "too few tasks to tell" if isinstance(verdict, str) and verdict.endswith("uncertain") else verdict

    @property
    def counted(self) -> Cell:
        """How many tasks were compared, and of how many where it was not all of them."""
        return tasks_of(self.tasks, self.whole)

    @property
    def evidence(self) -> str:
        """How many tasks were compared, with the noun."""
        return f"{self.counted} tasks"

    @property
    def pooled(self) -> bool:
        """Whether the row is of several others together."""
        return False

    @property
    def enough_tasks(self) -> int | None:
        """About how many tasks, changing as often as these, would tell that the loss is tolerated; None where it is not, or
        where nothing was measured to go by. Limits narrow with the root of the number."""
        room = self.difference + self.tolerance
        if self.low is None or room <= 0:
            return None
        return math.ceil(self.tasks * ((self.difference - self.low) / room) ** 2)

    @property
    def label(self) -> str:
        """What the row is called in a sentence."""
        return f"{self.suite} {self.name}"

    @property
    def change(self) -> str:
        """The difference with its unit, as it is compared with the tolerance."""
        return f"{self.difference:+.2f} {self.unit}"

    @property
    def limits(self) -> str | None:
        """The limits of the difference, for a table."""
        return None if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"

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
        *("suite", "language", "tasks", "before %", "after %", "change", "limits", "lost", "gained", "p", "verdict"),
    )
    unit: ClassVar[str] = "points"
    rate_axis: ClassVar[str] = "right (%)"
    before_error: float | None
    after_error: float | None
    lost: list[str]
    gained: list[str]

    def cells(self) -> tuple[Cell, ...]:
        return (
            *(self.suite, self.name, self.counted),
            *(rounded(value) for value in (self.before, self.after, self.difference)),
            *(self.limits, len(self.lost), len(self.gained), probability(self.p_value), self.verdict),
        )

    def flips(self) -> dict[str, list[str]]:
        return {"lost": self.lost, "gained": self.gained}


def tasks_of(tasks: int, whole: int | None) -> Cell:
    """The number of tasks; "3 of 164" where the data holds more."""
    return tasks if whole is None or whole == tasks else f"{tasks} of {whole}"


def rate_interval(rate: float, error: float | None, count: int) -> str:
    """The 95 % interval of a share of `count` tasks, both between 0 and 1, in percentage points (`rate_limits`)."""
    limits = rate_limits(rate, error, count).times(100)
    return f"{limits.low:.1f} to {limits.high:.1f}"


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


def conclusion(limits: Limits | None, tolerance: float) -> Conclusion:
    """The verdict on a change of which these are the limits, in one unit with the tolerance.

    Within tolerance: even the lower limit is, so that with 95 % confidence no more was lost. Beyond tolerance: even the upper
    limit is. Otherwise the tasks are too few to tell: both are possible. That holds for few tasks whatever they show.
    """
    if limits is not None and limits.low >= -tolerance:
        return "within tolerance"
    if limits is not None and limits.high < -tolerance:
        return "beyond tolerance"
    return "too few tasks to tell"
