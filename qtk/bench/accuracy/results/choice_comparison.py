"""Sets of questions before and after: by the way of asking that the float model did better in, on both sides."""

from __future__ import annotations

from qtk.bench.accuracy.results.choice_scores import ChoiceScore, Mode, rate_of
from qtk.bench.accuracy.results.comparison_rows import LanguageComparison, verdict
from qtk.bench.accuracy.results.statistics import mcnemar_exact
from qtk.errors import InputError


class ChoiceComparison(LanguageComparison):
    """One set; language is its name. mode: the way of asking that counts, which is the one in which `before` was better.

    Letting each side choose its own would hide losses; other_before, other_after: the rates of the other way, and
    free_after what `after` would have by its own better way, in percentage points.
    """

    mode: Mode
    other_before: float
    other_after: float
    free_after: float


def compare_choices(before: ChoiceScore, after: ChoiceScore, tolerance: float) -> ChoiceComparison:
    """The two scores of one set, question by question. InputError when their means are not of the same kind."""
    if before.mean != after.mean:
        raise InputError(f"{before.set}: the mean is over {before.mean} before and over {after.mean} after.")
    mode: Mode = before.kept
    other: Mode = "perplexity" if mode == "generation" else "generation"
    old, new = ({name: task.right(mode) for name, task in score.tasks.items()} for score in (before, after))
    change = rate_of({name: float(new[name]) - float(old[name]) for name in old}, before.tasks, before.mean)
    lost = [name for name in old if old[name] and not new[name]]
    gained = [name for name in old if new[name] and not old[name]]
    error = _points(change.standard_error)
    return ChoiceComparison(
        suite=before.suite,
        language=before.set,
        tasks=len(old),
        before=100 * before.rate(mode).value,
        before_error=_points(before.rate(mode).standard_error),
        after=100 * after.rate(mode).value,
        after_error=_points(after.rate(mode).standard_error),
        difference=100 * change.value,
        difference_error=error,
        lost=lost,
        gained=gained,
        p_value=mcnemar_exact(len(lost), len(gained)),
        verdict=verdict(100 * change.value, error, tolerance),
        mode=mode,
        other_before=100 * before.rate(other).value,
        other_after=100 * after.rate(other).value,
        free_after=100 * max(after.rate(mode).value, after.rate(other).value),
    )


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share
