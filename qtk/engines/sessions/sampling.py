"""Choosing the next token: the most likely one, or a draw from the nucleus (Holtzman et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtk.engines.sessions.decoding import Decoding

# Tokens that are sorted at first; the nucleus is nearly always within them.
_SORTED_AT_FIRST = 256


class Sampler:
    """Logits [batch, vocab] -> token ids [batch] int64. Temperature 0 takes the most likely token.

    Every row draws from a random generator of its own, so that the other rows of the batch do not change its tokens. With a
    seed of its own, a row has the same tokens in every place of every batch.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._random: dict[int, np.random.Generator] = {}

    def __call__(self, logits: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """rows: which of the call's rows each line of logits belongs to."""
        if self._decoding.temperature == 0:
            return logits.argmax(axis=-1)
        return np.array([self._draw(line, row) for line, row in zip(logits, rows, strict=True)], np.int64)

    def _generator(self, row: int) -> np.random.Generator:
        if row not in self._random:
            seed = self._decoding.seed
            row_seed = None if seed is None else [seed, row] if isinstance(seed, int) else [seed[row]]
            self._random[row] = np.random.default_rng(row_seed)
        return self._random[row]

    def _draw(self, logits: np.ndarray, row: int) -> int:
        random, top_p = self._generator(row), self._decoding.top_p
        weights = np.exp(((logits - logits.max()) / self._decoding.temperature).astype(np.float64))
        weights /= weights.sum()
        if top_p == 1:
            return int(random.choice(len(weights), p=weights))
        # Only the first tokens are sorted, and more of them where these do not reach top_p.
        count = _SORTED_AT_FIRST
        while True:
            count = min(count, len(weights))
            first = np.argpartition(-weights, count - 1)[:count]
            order = first[np.argsort(-weights[first], kind="stable")]
            reached = np.cumsum(weights[order])
            if reached[-1] >= top_p or count == len(weights):
                break
            count *= 16
        nucleus = order[: int(np.searchsorted(reached, top_p)) + 1]
        return int(nucleus[random.choice(len(nucleus), p=weights[nucleus] / weights[nucleus].sum())])
