"""Which variants are the best: those that no other dominates."""

from __future__ import annotations

import numpy as np

from qtk.sweeps.ranking import pareto_front


def test_the_front_by_hand() -> None:
    # small and far, large and near, beaten by the first, equal to the second, between
    points = [(1, 9), (9, 1), (2, 9), (9, 1), (5, 5)]
    assert pareto_front(points) == [0, 1, 3, 4]
    assert pareto_front([]) == []


def test_every_point_beyond_the_front_is_dominated_by_one_on_it() -> None:
    points = np.random.default_rng(0).integers(0, 6, (60, 3)).tolist()
    front = pareto_front(points)
    for number, point in enumerate(points):
        beaten = any(
            all(a <= b for a, b in zip(points[it], point, strict=True)) and points[it] != point for it in front
        )
        assert beaten == (number not in front)
