"""pass@k, its standard error, and the exact paired test: small formulas, each with its source."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
