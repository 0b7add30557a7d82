"""What a task of lm-evaluation-harness scored, metric by metric, and how two such scores compare."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.comparison_rows import Verdict, points, verdict
from qtk.bench.accuracy.results.statistics import mcnemar_exact, paired_difference


class HarnessMetric(BaseModel):
    """One metric after one filter, as that harness sums it up; documents: its value for each document, where it has one."""

    model_config = ConfigDict(frozen=True)
    name: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    documents: dict[str, float]


class HarnessScore(BaseModel):
    """One task. file_sha256: of its documents and prompts. cut: requests that were too long and lost their beginning."""

    model_config = ConfigDict(frozen=True)
    suite: str = "lm-eval"
    language: str
    version: str
    examples: int
    file_sha256: str
    cut: int
    metrics: list[HarnessMetric]
    tasks: dict[str, str]


class HarnessComparison(BaseModel):
    """One metric of one task before and after, in its own unit.

    lost, gained: documents that got worse and better. p_value: exact McNemar where every document is right or wrong,
    else from the paired difference in the normal approximation; None where a document has no value of its own. verdict:
    for metrics between 0 and 1 of which more is better, in percentage points.
    """

    model_config = ConfigDict(frozen=True)
    task: str
    metric: str
    documents: int
    before: float
    after: float
    difference: float
    difference_error: float | None
    lost: list[str]
    gained: list[str]
    p_value: float | None
    verdict: Verdict | None


def compare_harness(before: HarnessScore, after: HarnessScore, tolerance: float) -> list[HarnessComparison]:
    """Every metric that both have."""
    new = {(metric.name, metric.filter): metric for metric in after.metrics}
    pairs = [(old, new[old.name, old.filter]) for old in before.metrics if (old.name, old.filter) in new]
    return [_compare(before, old, now, tolerance) for old, now in pairs]


def _compare(score: HarnessScore, old: HarnessMetric, new: HarnessMetric, tolerance: float) -> HarnessComparison:
    names = [name for name in old.documents if name in new.documents]
    pairs = [(old.documents[name], new.documents[name]) for name in names]
    sign = 1 if old.higher_is_better else -1
    lost = [name for name, (was, now) in zip(names, pairs, strict=True) if sign * now < sign * was]
    gained = [name for name, (was, now) in zip(names, pairs, strict=True) if sign * now > sign * was]
    error, p_value, judged = None, None, None
    if pairs:
        difference, raw = paired_difference([was for was, _ in pairs], [now for _, now in pairs])
        error = None if math.isnan(raw) else raw
        if all(value in (0.0, 1.0) for pair in pairs for value in pair):
            p_value = mcnemar_exact(len(lost), len(gained))
        elif error is not None:
            p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
        if old.higher_is_better and all(0 <= value <= 1 for pair in pairs for value in pair):
            judged = verdict(100 * difference, points(raw), tolerance)
    return HarnessComparison(
        task=score.language,
        metric=old.name if old.filter == "none" else f"{old.name} ({old.filter})",
        documents=len(score.tasks),
        before=old.value,
        after=new.value,
        difference=new.value - old.value,
        difference_error=error,
        lost=lost,
        gained=gained,
        p_value=p_value,
        verdict=judged,
    )
