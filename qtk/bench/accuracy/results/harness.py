"""The score of a task of lm-evaluation-harness, metric by metric, and two such scores compared document by document."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.score import (
    Cell,
    ComparedRow,
    CompareOptions,
    Conclusion,
    Score,
    conclusion,
    normal_p_value,
    probability,
)
from qtk.bench.accuracy.results.statistics import (
    Limits,
    mcnemar_exact,
    mean_limits,
    paired_difference,
    paired_rate_limits,
)


class HarnessMetric(BaseModel):
    """One metric after one filter, as that harness sums it up; documents: its value for each document, where it has one."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    name: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    documents: dict[str, float]

    @property
    def label(self) -> str:
        return self.name if self.filter == "none" else f"{self.name} ({self.filter})"


class HarnessScore(Score):
    """One task. file_sha256: of its documents and prompts. cut: requests that were too long and lost their beginning."""

    title: ClassVar[str] = "Tasks of lm-evaluation-harness"
    columns: ClassVar[tuple[str, ...]] = ("task", "metric", "documents", "examples", "value", "± SE")
    kind: Literal["lm-eval"] = "lm-eval"
    suite: str = "lm-eval"
    version: str
    examples: int
    cut: int
    metrics: list[HarnessMetric]
    tasks: dict[str, str]

    def rows(self) -> list[tuple[Cell, ...]]:
        return [
            (self.name, metric.label, self.counted, self.examples, metric.value, metric.standard_error or None)
            for metric in self.metrics
        ]

    def compare(self, after: HarnessScore, options: CompareOptions) -> list[ComparedRow]:
        """A row for every metric that both scores have."""
        new = {(metric.name, metric.filter): metric for metric in after.metrics}
        return [
            self._compare(metric, new[metric.name, metric.filter], options.tolerance)
            for metric in self.metrics
            if (metric.name, metric.filter) in new
        ]

    def _compare(self, old: HarnessMetric, new: HarnessMetric, tolerance: float) -> ComparedMetric:
        names = [name for name in old.documents if name in new.documents]
        pairs = [(old.documents[name], new.documents[name]) for name in names]
        sign = 1 if old.higher_is_better else -1
        lost = [name for name, (was, now) in zip(names, pairs, strict=True) if sign * now < sign * was]
        gained = [name for name, (was, now) in zip(names, pairs, strict=True) if sign * now > sign * was]
        error: float | None = None
        limits: Limits | None = None
        p_value: float | None = None
        verdict: Conclusion | None = None
        if pairs:
            difference, raw_error = paired_difference([was for was, _ in pairs], [now for _, now in pairs])
            error = None if math.isnan(raw_error) else raw_error
            if all(value in (0.0, 1.0) for pair in pairs for value in pair):
                p_value = mcnemar_exact(len(lost), len(gained))
            else:
                p_value = normal_p_value(difference, error)
            if old.higher_is_better and all(0 <= value <= 1 for pair in pairs for value in pair):
                limits = paired_rate_limits([now - was for was, now in pairs])
                verdict = conclusion(limits.times(100), tolerance)
            elif error is not None:
                limits = mean_limits(difference, error, len(pairs))
        return ComparedMetric(
            suite=self.suite,
            name=self.name,
            metric=old.label,
            tasks=len(self.tasks),
            whole=self.whole,
            before=old.value,
            after=new.value,
            difference=new.value - old.value,
            difference_error=error,
            low=limits.low if limits else None,
            high=limits.high if limits else None,
            lost=lost,
            gained=gained,
            p_value=p_value,
            tolerance=tolerance,
            verdict=verdict,
        )


class ComparedMetric(ComparedRow):
    """One metric of one task before and after, in its own unit; tasks: how many documents the task has.

    lost, gained: documents that got worse and better. p_value: exact McNemar where every document is right or wrong,
    else from the paired difference in the normal approximation; None where a document has no value of its own. verdict:
    for metrics between 0 and 1 of which more is better, in percentage points.
    """

    title: ClassVar[str] = "Tasks of lm-evaluation-harness before and after"
    columns: ClassVar[tuple[str, ...]] = (
        *("task", "metric", "documents", "before", "after", "change", "limits", "worse", "better", "p", "verdict"),
    )
    unit: ClassVar[str] = "points"
    kind: Literal["lm-eval"] = "lm-eval"
    metric: str
    lost: list[str]
    gained: list[str]

    @property
    def label(self) -> str:
        return f"{self.suite} {self.name} {self.metric}"

    @property
    def change(self) -> str:
        return f"{100 * self.difference:+.2f} {self.unit}"

    @property
    def limits(self) -> str | None:
        return None if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"

    def cells(self) -> tuple[Cell, ...]:
        return (
            *(self.name, self.metric, self.counted, self.before, self.after, self.difference, self.limits),
            *(len(self.lost), len(self.gained), probability(self.p_value), self.verdict),
        )
