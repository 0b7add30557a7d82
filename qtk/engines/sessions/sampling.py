"""Choosing the next token: the most likely one, or a draw from the nucleus (Holtzman et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtk.errors import InputError

_FIRST = 256


def row_seeds(seed: int | Sequence[int] | None, rows: int) -> list[int] | list[None]:
    """A seed a row, for runtimes that draw by themselves: those given, or following numbers from the one for all."""
    if seed is None:
        return [None] * rows
    return [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)


class Sampler:
    """Logits [batch, vocab] -> token ids [batch] int64. Temperature 0 takes the most likely token.

    Every row draws from numbers of its own, so that it does not matter which others are still there. seed: one for all
    rows, or one a row, with which a row draws the same in whatever place of whatever batch it stands.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | Sequence[int] | None = None) -> None:
        if temperature < 0 or not 0 < top_p <= 1:
            raise InputError(f"temperature {temperature} and top_p {top_p}: they must be >= 0, and in (0, 1].")
        self.temperature, self.top_p = temperature, top_p
        self._seed = seed
        self._random: dict[int, np.random.Generator] = {}

    def __call__(self, logits: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """rows: which of the call's rows each line of logits belongs to."""
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        return np.array([self._draw(line, row) for line, row in zip(logits, rows, strict=True)], np.int64)

    def _draw(self, logits: np.ndarray, row: int) -> int:
        if row not in self._random:
            if self._seed is None or isinstance(self._seed, int):
                seed = None if self._seed is None else [self._seed, row]
            else:
                seed = [self._seed[row]]
            self._random[row] = np.random.default_rng(seed)
        weights = np.exp(((logits - logits.max()) / self.temperature).astype(np.float64))
        weights /= weights.sum()
        if self.top_p == 1:
            return int(self._random[row].choice(len(weights), p=weights))
        # The nucleus is the smallest set of most likely tokens that reaches top_p: nearly always few of them, so only
        # the first are sorted, and more where they do not reach.
        count = _FIRST
        while True:
            count = min(count, len(weights))
            first = np.argpartition(-weights, count - 1)[:count]
            order = first[np.argsort(-weights[first], kind="stable")]
            reached = np.cumsum(weights[order])
            if reached[-1] >= self.top_p or count == len(weights):
                break
            count *= 16
        nucleus = order[: int(np.searchsorted(reached, self.top_p)) + 1]
        return int(nucleus[self._random[row].choice(len(nucleus), p=weights[nucleus] / weights[nucleus].sum())])
