"""Each loss against its check values, a naive version in float64, and autograd of the definition; CoBa against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qtk.finetuning.losses import (
    Case,
    coba_weights,
    divergence_factor,
    sample_coefficients,
    slope,
    token_losses,
    weighted_loss,
)
from qtk.finetuning.schedule import CosineSchedule, warmup_steps

CASES: tuple[Case, ...] = ("case1", "case2", "case3", "case4")


def naive(case: Case, rows: list[list[float]], tasks: list[int], weights: list[float]) -> float:
    """The formulas as they are written, over rows of masked token losses."""
    means = [sum(row) / len(row) for row in rows]
    if case == "case1":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if case == "case2":
        return sum(means) / len(means)
    present = sorted(set(tasks))
    of_task = {}
    for task in present:
        own = [row for row, t in zip(rows, tasks, strict=True) if t == task]
        tokens = [loss for row in own for loss in row]
        of_task[task] = (
            sum(tokens) / len(tokens) if case == "case3" else sum(sum(row) / len(row) for row in own) / len(own)
        )
    return sum(weights[t] * of_task[t] for t in present) / sum(weights[t] for t in present)


def ours(case: Case, rows: list[list[float]], tasks: list[int], weights: list[float]) -> float:
    coefficients = sample_coefficients(case, [len(row) for row in rows], tasks, weights)
    return sum(c * sum(row) for c, row in zip(coefficients, rows, strict=True))


ROWS, TASKS = [[1.0, 2.0], [4.0], [3.0, 3.0, 3.0, 3.0]], [0, 0, 1]


@pytest.mark.parametrize(
    ("case", "weights", "expected"),
    [
        ("case1", [1, 1], 19 / 7),
        ("case2", [1, 1], 17 / 6),
        ("case3", [1, 1], 8 / 3),
        ("case4", [1, 1], 2.875),
        ("case3", [1, 3], 17 / 6),
        ("case4", [1, 3], 2.9375),
    ],
)
def test_the_check_values(case: Case, weights: list[float], expected: float) -> None:
    assert ours(case, ROWS, TASKS, weights) == pytest.approx(expected, abs=1e-12)
    assert naive(case, ROWS, TASKS, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_random_steps_agree_with_the_naive_version(case: Case) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        tasks = random.integers(0, 4, size=random.integers(1, 9)).tolist()
        rows = [random.random(random.integers(1, 12)).tolist() for _ in tasks]
        weights = (random.random(4) + 0.1).tolist()
        assert ours(case, rows, tasks, weights) == pytest.approx(naive(case, rows, tasks, weights), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_row_without_learnt_tokens_counts_nowhere(case: Case) -> None:
    assert sample_coefficients(case, [2, 0, 1], [0, 1, 0], [1, 5])[1] == 0
    with_it = sample_coefficients(case, [2, 0, 1, 4], [0, 1, 0, 1], [1, 5])
    without = sample_coefficients(case, [2, 1, 4], [0, 0, 1], [1, 5])
    assert [with_it[0], *with_it[2:]] == pytest.approx(without)
    assert sample_coefficients(case, [0, 0], [0, 1], [1, 1]) == [0.0, 0.0]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_definition_however_the_step_is_dealt_out(case: Case) -> None:
    torch.manual_seed(0)
    counts, tasks, weights = [3, 1, 2, 4], [0, 1, 1, 0], [1.0, 2.5]
    logits = torch.randn(sum(counts), 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (sum(counts),))
    losses = -torch.log_softmax(logits, -1)[torch.arange(len(labels)), labels]
    rows = losses.split(counts)
    means = torch.stack([row.mean() for row in rows])
    definition = {
        "case1": losses.mean(),
        "case2": means.mean(),
        "case3": (torch.cat([rows[0], rows[3]]).mean() + 2.5 * torch.cat(rows[1:3]).mean()) / 3.5,
        "case4": (means[[0, 3]].mean() + 2.5 * means[[1, 2]].mean()) / 3.5,
    }[case]
    (expected,) = torch.autograd.grad(definition, logits)

    single = logits.detach().float().requires_grad_()
    coefficients = sample_coefficients(case, counts, tasks, weights)
    for samples in ((0, 2), (1, 3)):  # two micro-batches
        picked = torch.cat([torch.arange(sum(counts[:s]), sum(counts[: s + 1])) for s in samples])
        own = torch.tensor([coefficients[s] for s in samples for _ in range(counts[s])])
        weighted_loss(token_losses(single[picked], labels[picked]), own).backward()
    assert single.grad is not None
    torch.testing.assert_close(single.grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_slope_is_that_of_the_least_squares_line() -> None:
    values = [1.0, 0.9, 0.7, 0.75]
    assert slope(values) == pytest.approx(np.polyfit(range(4), values, 1)[0])
    assert slope([1.0, 0.0, 0.9, 0.0]) == pytest.approx(-0.1)  # absent ones are left out
    assert slope([1.0]) == slope([]) == 0.0


def test_coba_agrees_with_its_formulas() -> None:
    histories, largest, tau = [[-0.02, -0.01], [-0.03, -0.04], [0.01, 0.02]], [0.01, 0.015, 0.02], 5.0

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]

    last = [kept[-1] for kept in histories]
    relative = softmax([3 * a / sum(map(abs, last)) for a in last])
    absolute = softmax([-2 * kept[-1] / sum(map(abs, kept)) for kept in histories])
    factor = min(1.0, 3 * softmax([-tau * 3 * a / sum(map(abs, largest)) for a in largest])[-1])
    expected = softmax([3 * (factor * r + (1 - factor) * a) for r, a in zip(relative, absolute, strict=True)])
    weights, found = coba_weights(histories, largest, tau)
    assert found == pytest.approx(factor)
    assert weights == pytest.approx(expected)
    assert sum(weights) == pytest.approx(1)


def test_the_divergence_factor_is_never_above_one() -> None:
    assert divergence_factor([0.5, -0.5], tau=5.0) == 1.0
    assert divergence_factor([0.0, 0.0], tau=5.0) == 1.0


def test_no_task_is_lost() -> None:
    """With ten tasks the smallest softmax weight falls below the least, and is raised."""
    histories = [[1.0]] + [[-1e-9]] * 9
    weights, _ = coba_weights(histories, [0.5, 0.5, 5.0], tau=5.0)
    assert min(weights) >= 1 / 100
    assert sum(weights) == pytest.approx(1)


def test_the_schedule_warms_up_falls_as_a_cosine_and_keeps_its_floor() -> None:
    schedule = CosineSchedule(total=110, warmup=10, peak=1e-3, floor=1e-4)
    assert [schedule.rate(step) for step in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])
    assert schedule.rate(10) == pytest.approx(1e-3)
    assert schedule.rate(60) == pytest.approx(0.5e-3)
    assert schedule.rate(35) == pytest.approx(0.5e-3 * (1 + math.cos(math.pi / 4)))
    assert {schedule.rate(step) for step in (100, 109, 500)} == {1e-4}
    low = CosineSchedule(total=100, warmup=50, peak=1e-3, floor=9e-4)
    assert low.rate(0) == pytest.approx(2e-5)  # the floor is not the warm-up's


def test_a_warm_up_is_a_share_or_a_number() -> None:
    assert [warmup_steps(warmup, 200) for warmup in (0, 0.05, 1, 30, 500)] == [0, 10, 1, 30, 200]
