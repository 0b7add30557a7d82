"""The losses of multi-task fine-tuning as pure functions: MFTCoder's case1 to case4, and CoBa's weights of tasks.

Every case is a weighted sum over tokens of their cross-entropy, whose weights follow from counts alone: so a step's loss is
normalised over all its micro-batches and devices at once, before the first forward pass, and no result depends on how the
step was dealt out. MFTCoder normalises each micro-batch by itself: there, with one row in each, all four cases are the same.

With n_j learnt tokens in sample j of task t(j), w_t the weight of a task, T the tasks present in the step:
case1: the mean over tokens                               1 / sum n
case2: the mean over samples of their means               1 / (samples * n_j)
case3: the weighted mean over tasks of their token means  w_t / (sum_T w * sum_{j in t} n_j)
case4: the weighted mean over tasks of case2 in each      w_t / (sum_T w * samples of t * n_j)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Case = Literal["case1", "case2", "case3", "case4"]


def sample_coefficients(
    case: Case, counts: Sequence[int], tasks: Sequence[int], weights: Sequence[float]
) -> list[float]:
    """What each learnt token of each sample of a step counts in its loss.

    counts: learnt tokens of each sample; tasks: the task of each; weights: of every task. A sample without learnt tokens has
    no part in any mean, and gets 0.
    """
    n, t = np.asarray(counts, np.float64), np.asarray(tasks, np.int64)
    present = n > 0
    if not present.any():
        return [0.0] * len(n)
    if case == "case1":
        return (present / n.sum()).tolist()
    own = np.divide(1.0, n, out=np.zeros_like(n), where=present)
    if case == "case2":
        return (own / present.sum()).tolist()
    w = np.asarray(weights, np.float64)
    samples_of, tokens_of = (np.bincount(t, weights=what, minlength=len(w)) for what in (present, n))
    share = w / w[samples_of > 0].sum()
    if case == "case3":
        return (present * share[t] / np.maximum(tokens_of, 1)[t]).tolist()
    return (own * share[t] / np.maximum(samples_of, 1)[t]).tolist()


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label in nats, float32 [n], from logits [n, vocabulary] of any dtype and labels [n] int64."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def weighted_loss(losses: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """A micro-batch's part of the loss of its step: sum of coefficient times loss, both [n] float32."""
    return (losses * coefficients).sum()


def slope(values: Sequence[float]) -> float:
    """The slope of the least-squares line through values at 0, 1, 2, ...; those that are 0 (absent) are left out first."""
    y = np.array([value for value in values if value != 0], np.float64)
    if len(y) < 2:
        return 0.0
    x = np.arange(len(y)) - (len(y) - 1) / 2
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def relative_convergence(slopes: Sequence[float]) -> np.ndarray:
    """CoBa's relative convergence scores: softmax over tasks of K a_i / sum |a|, from the tasks' latest slopes."""
    a = np.asarray(slopes, np.float64)
    return _softmax(len(a) * a / _scale(a))


def absolute_convergence(histories: Sequence[Sequence[float]]) -> np.ndarray:
    """CoBa's absolute convergence scores: softmax over tasks of -N a_i / sum over its N kept slopes of |a_i|."""
    scores = [-len(kept) * kept[-1] / _scale(np.asarray(kept, np.float64)) for kept in histories]
    return _softmax(np.array(scores))


def divergence_factor(slopes: Sequence[float], tau: float) -> float:
    """CoBa's divergence factor, from the slopes of the largest loss ratio over tasks so far: how far to trust the relative scores.

    T times the last of softmax over time of -tau T A / sum |A|; at most 1, as the paper (arXiv 2410.06741) has it and MFTCoder
    does not: above 1 the absolute scores would count negatively.
    """
    a = np.asarray(slopes, np.float64)
    return min(1.0, len(a) * float(_softmax(-tau * len(a) * a / _scale(a))[-1]))


def coba_weights(
    histories: Sequence[Sequence[float]], largest: Sequence[float], tau: float
) -> tuple[list[float], float]:
    """(weight of each task, divergence factor). histories: each task's slopes up to now; largest: those of the largest ratio.

    No weight is below about a tenth of the mean: otherwise a task could be lost for good.
    """
    tasks = len(histories)
    factor = divergence_factor(largest, tau)
    relative = relative_convergence([kept[-1] for kept in histories])
    weights = _softmax(tasks * (factor * relative + (1 - factor) * absolute_convergence(histories)))
    least = 1 / (10 * tasks)
    if weights.min() < least:
        weights = weights * 0.9 + least
    return weights.tolist(), factor


def _scale(values: np.ndarray) -> float:
    """The sum of magnitudes; 1 where all are 0, so that what is divided by it stays 0."""
    return float(np.abs(values).sum()) or 1.0


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
