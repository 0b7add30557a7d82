"""pass@k, its standard error, the exact paired test and limits of a change: small formulas, each with its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_ONE_SIDED = NormalDist().inv_cdf(0.95)
_TWO_SIDED = NormalDist().inv_cdf(0.975)
_FEW_CHANGES = 100  # above it the score test and the exact one agree


@dataclass(frozen=True)
class Limits:
    """Two limits of a figure, in its unit."""

    low: float
    high: float

    def times(self, factor: float) -> Limits:
        """The limits in another unit, such as percentage points."""
        return Limits(factor * self.low, factor * self.high)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes, from `samples` of which `passed` did.

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over tasks, and its standard error (sample deviation / sqrt n; with one value it is unknown: nan)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p-value that `lost` and `gained` of the changed pairs are two faces of a fair coin.

    McNemar 1947 with the binomial distribution itself instead of its chi-square approximation.
    """
    changed = lost + gained
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2.0 * tail / 2**changed)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean of after - before over the same tasks, and its standard error."""
    return mean_and_error([b - a for a, b in zip(before, after, strict=True)])


def rate_limits(rate: float, error: float | None, count: int) -> Limits:
    """The 95 % interval of a share between 0 and 1 over `count` tasks, by Wilson's score (1927). It does not shrink to nothing
    where all tasks failed or all passed.

    error: the standard error, which may be that of strata or of several samples a task. The interval then counts the tasks
    that this error stands for, rate (1 - rate) / error^2 + 1, as is usual for surveys (Korn and Graubard 1998).
    """
    count_of_error = rate * (1 - rate) / error**2 + 1 if error else float(count)
    n, z = max(count_of_error, 1.0), _TWO_SIDED
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Limits(max(0.0, middle - half), min(1.0, middle + half))


def paired_rate_limits(changes: Sequence[float]) -> Limits:
    """Limits of the mean change of shares between 0 and 1, after - before task by task: each holds with 95 % confidence.

    They invert the score test of non-inferiority for paired proportions (Nam 1997; Tango 1998, "Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design"), which tells also where no task
    changed: of n such tasks a loss of z^2 / (n + z^2) could have been missed, 1.6 points with 164 of them and 47 with three.
    With few changed tasks that test is a little bold, so these also keep what the exact limits of the share of losses among
    the changed tasks leave open (Clopper and Pearson 1934): three losses of three tasks refute nothing.

    Changes in part (several samples a task, or tasks of unequal weight) count as so many changes of their typical size,
    sum d^2 / sum |d|, and never leave less open than n tasks without any change do.
    """
    count = len(changes)
    lost, gained = (math.fsum(max(sign * change, 0.0) for change in changes) for sign in (-1, 1))
    if all(change in (-1.0, 0.0, 1.0) for change in changes):
        return Limits(-_most_lost(int(lost), int(gained), count), _most_lost(int(gained), int(lost), count))
    size = math.fsum(change * change for change in changes) / (lost + gained)
    unseen = _largest_loss(0.0, 0.0, count)
    return Limits(
        -max(unseen, size * _largest_loss(lost / size, gained / size, count)),
        max(unseen, size * _largest_loss(gained / size, lost / size, count)),
    )


def _most_lost(lost: int, gained: int, count: int) -> float:
    """The loss that `lost` and `gained` whole tasks leave open, by the score test and where they are few by the exact limit."""
    changed = lost + gained
    by_score = _largest_loss(lost, gained, count)
    if not 0 < changed <= _FEW_CHANGES:
        return by_score
    return max(by_score, changed / count * (2 * _largest_share(lost, changed) - 1))


def _largest_share(hits: int, trials: int) -> float:
    """The largest chance that `hits` of `trials` do not refute at 5 %: the upper limit of Clopper and Pearson 1934."""
    below, above = hits / trials, 1.0
    for _ in range(50):
        middle = (below + above) / 2
        tail = math.fsum(math.comb(trials, i) * middle**i * (1 - middle) ** (trials - i) for i in range(hits + 1))
        if tail > 0.05:
            below = middle
        else:
            above = middle
    return above


def _largest_loss(lost: float, gained: float, count: int) -> float:
    """The largest loss that `lost` and `gained` of `count` tasks do not refute at 5 %, by bisection: the score grows with it."""
    below, above = (lost - gained) / count, 1.0
    for _ in range(50):
        middle = (below + above) / 2
        if _loss_score(lost, gained, count, middle) < _ONE_SIDED:
            below = middle
        else:
            above = middle
    return above


def _loss_score(lost: float, gained: float, count: int, loss: float) -> float:
    """Tango's score of the hypothesis that the share of right answers fell by `loss`: normal, and positive for a smaller loss.

    chance: the likeliest chance of a gain under that hypothesis, from which the variance follows.
    """
    b = (2 * count - lost + gained) * loss - lost - gained
    root = math.sqrt(max(0.0, b * b + 8 * count * gained * loss * (1 - loss)))
    chance = (root - b) / (4 * count)
    variance = count * (2 * chance + loss * (1 - loss))
    excess = gained - lost + count * loss
    return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)


def mean_limits(mean: float, error: float, count: int) -> Limits:
    """Limits of a mean over `count` values with its standard error, by Student's t: each holds with 95 % confidence.

    The quantile is the expansion 26.7.5 of Abramowitz and Stegun, which is a hundredth too small with three values.
    """
    z, freedom = _ONE_SIDED, count - 1
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    half = error * math.fsum(term / freedom**power for power, term in enumerate(terms))
    return Limits(mean - half, mean + half)
