"""Rows that join and leave a running batch: each with a prompt, a length and cache slots of its own.

A prompt runs by itself, in chunks, into the cache slots of its row; then the row takes part in the steps of the others. Where
the executor does not run rows apart, there is one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtk.engines.sessions.executor import RowExecutor
from qtk.engines.sessions.session import DecoderSession


@dataclass(frozen=True)
class PromptPiece:
    """A chunk of a prompt that has run: positions first .. stop - 1, and logits [some tokens, vocab], of every position or of
    the last only, which are valid until the next run."""

    first: int
    stop: int
    logits: np.ndarray


class RowBatch:
    """The rows of one session, by keys that the caller chooses. Not for several threads at once.

    Rows that are decoded together lie at the front of the cache, a row whose prompt is still running behind them. A row that
    is decoded apart lies at the back: matrix products of one row and of several add up in different orders, so only such a
    row gets the very logits that it gets alone, whoever else is there.
    """

    def __init__(self, session: DecoderSession, rows: int | None = None) -> None:
        """rows: the most at once; None takes as many as the engine does."""
        self._session = session
        executor = session.executor
        self._executor = executor if isinstance(executor, RowExecutor) else None
        most = session.limits.max_batch if rows is None else rows
        self.capacity = most if self._executor is not None else 1
        self._together: list[int] = []  # keys in the order of their places
        self._apart: dict[int, int] = {}  # key -> place
        self._lengths: dict[int, int] = {}
        self._filling: set[int] = set()  # those whose prompt is not done

    def __len__(self) -> int:
        return len(self._lengths)

    def join(self, key: int, *, apart: bool = False) -> None:
        """Takes a row in, where there is room: `len(batch) < batch.capacity`. apart: whether it is always decoded alone."""
        assert len(self) < self.capacity, "a row joins a full batch"
        if not self._lengths:
            if self._executor is not None:
                self._executor.open_rows(self.capacity)
            else:
                self._session.executor.start(1)
        if apart:
            self._apart[key] = self._last_free()
        else:
            self._make_room(len(self._together))
            self._together.append(key)
        self._lengths[key] = 0
        self._filling.add(key)

    def _last_free(self) -> int:
        taken = {*range(len(self._together)), *self._apart.values()}
        return max(place for place in range(self.capacity) if place not in taken)

    def _make_room(self, place: int) -> None:
        for key, other in self._apart.items():
            if other == place:
                self._apart[key] = self._last_free()
                self._move(key, place, self._apart[key])
                return

    def _move(self, key: int, place: int, new_place: int) -> None:
        assert self._executor is not None
        self._executor.move_row(place, new_place, self._lengths[key])

    def prefill(self, key: int, prompt: Sequence[int], *, every_position: bool = False) -> Iterator[PromptPiece]:
        """Runs a row's prompt, a chunk each time the iterator is asked, between which other rows may decode, join or leave.
        One prompt at a time."""
        executor = self._session.executor
        chunk = executor.chunk_logits if every_position else executor.chunk_tokens
        for first in range(0, len(prompt), chunk):
            ids = np.array([prompt[first : first + chunk]], np.int64)
            count = ids.shape[1]
            positions = np.arange(first, first + count)[None]
            wanted = np.arange(count)[None] if every_position else np.array([[count - 1]])
            self._select(self._place(key), 1)
            logits = self._session.run(ids, positions, np.array([first], np.int64), wanted)
            self._lengths[key] = first + count
            if first + count == len(prompt):
                self._filling.discard(key)
            yield PromptPiece(first, first + count, logits[0])

    def decode(self, tokens: Mapping[int, int]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Runs one token of each row that is named: the rows together in one run, each row apart in a run of its own.

        Yields the keys of each run and their logits [rows, vocab], which are valid until the next run.
        """
        together = [key for key in self._together if key in tokens]
        assert together == self._together[: len(together)], "rows that decode lie before one whose prompt is running"
        if together:
            yield together, self._step(0, together, tokens)
        for key in [key for key in tokens if key in self._apart]:
            yield [key], self._step(self._apart[key], [key], tokens)

    def _step(self, first: int, keys: Sequence[int], tokens: Mapping[int, int]) -> np.ndarray:
        self._select(first, len(keys))
        lengths = np.array([self._lengths[key] for key in keys], np.int64)
        ids = np.array([[tokens[key]] for key in keys], np.int64)
        logits = self._session.run(ids, lengths[:, None], lengths, np.zeros((len(keys), 1), np.int64))
        for key in keys:
            self._lengths[key] += 1
        return logits[:, 0]

    def leave(self, key: int) -> None:
        """Gives a row's place up."""
        if key in self._apart:
            del self._apart[key]
        else:
            self._close_gap(self._together.index(key))
        self._filling.discard(key)
        del self._lengths[key]

    def _close_gap(self, place: int) -> None:
        """The last row takes the place; a row whose prompt is still running stays behind the others."""
        rows = self._together
        last = len(rows) - 1
        if rows[last] in self._filling and place < last - 1:
            self._move_forward(last - 1, place)
            place = last - 1
        if place < last:
            self._move_forward(last, place)
        rows.pop()

    def _move_forward(self, place: int, new_place: int) -> None:
        self._move(self._together[place], place, new_place)
        self._together[new_place] = self._together[place]

    def _place(self, key: int) -> int:
        return self._apart[key] if key in self._apart else self._together.index(key)

    def _select(self, first: int, count: int) -> None:
        if self._executor is not None:
            self._executor.select_rows(range(first, first + count))
