"""The score of reference solutions: how likely a model finds them, and two such scores compared task by task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.score import (
    Cell,
    ComparedRow,
    CompareOptions,
    Score,
    TaskSource,
    conclusion,
    normal_p_value,
    probability,
)
from qtk.bench.accuracy.results.statistics import mean_and_error, mean_limits, paired_difference


class TaskLikelihood(BaseModel):
    """One reference solution: the sum of its tokens' natural log-probabilities, and how many tokens it has."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    log_likelihood: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.log_likelihood / self.tokens


class LikelihoodScore(Score):
    """One language: mean over tasks of the log-likelihood per token (nats), and its standard error."""

    title: ClassVar[str] = "Log-likelihood of the reference solutions, nats per token"
    columns: ClassVar[tuple[str, ...]] = ("suite", "language", "tasks", "mean", "± SE")
    kind: Literal["likelihood"] = "likelihood"
    mean: float
    standard_error: float | None
    tasks: dict[str, TaskLikelihood]

    def rows(self) -> list[tuple[Cell, ...]]:
        return [(self.suite, self.name, self.counted, self.mean, self.standard_error or None)]

    def compare(self, after: LikelihoodScore, options: CompareOptions) -> list[ComparedRow]:
        old = [task.per_token for task in self.tasks.values()]
        new = [after.tasks[name].per_token for name in self.tasks]
        difference, raw_error = paired_difference(old, new)
        error = None if math.isnan(raw_error) else raw_error
        limits = None if error is None else mean_limits(difference, error, len(old))
        row = ComparedLikelihood(
            suite=self.suite,
            name=self.name,
            tasks=len(old),
            whole=self.whole,
            before=self.mean,
            after=after.mean,
            difference=difference,
            difference_error=error,
            low=limits.low if limits else None,
            high=limits.high if limits else None,
            p_value=normal_p_value(difference, error),
            worse=sum(later < earlier for earlier, later in zip(old, new, strict=True)),
            tolerance=options.likelihood_tolerance,
            verdict=conclusion(limits, options.likelihood_tolerance),
        )
        return [row]


class ComparedLikelihood(ComparedRow):
    """One language: mean log-likelihood of the references before and after, nats per token.

    p_value: from the ratio of the difference to its standard error in the normal approximation (None with fewer than two
    tasks). worse: tasks whose likelihood fell.
    """

    title: ClassVar[str] = "Log-likelihood of the reference solutions before and after"
    columns: ClassVar[tuple[str, ...]] = (
        *("suite", "language", "tasks", "before", "after", "change", "limits", "p", "tasks worse", "verdict"),
    )
    unit: ClassVar[str] = "nats per token"
    change_axis: ClassVar[str] = "change of log-likelihood, nats per token"
    kind: Literal["likelihood"] = "likelihood"
    worse: int

    @property
    def change(self) -> str:
        return f"{self.difference:+.4f} {self.unit}"

    @property
    def limits(self) -> str | None:
        return None if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"

    def cells(self) -> tuple[Cell, ...]:
        return (
            *(self.suite, self.name, self.counted, self.before, self.after, self.difference, self.limits),
            *(probability(self.p_value), self.worse, self.verdict),
        )


def score_likelihood(source: TaskSource, tasks: Mapping[str, TaskLikelihood]) -> LikelihoodScore:
    """Sums up a language."""
    mean, error = mean_and_error([task.per_token for task in tasks.values()])
    return LikelihoodScore(
        suite=source.suite,
        name=source.name,
        file=source.file,
        file_sha256=source.sha256,
        whole=source.whole,
        mean=mean,
        standard_error=error if error == error else None,
        tasks=dict(tasks),
    )
