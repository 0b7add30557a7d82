"""What runs the graph: the one interface between qtk's generation loop and a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from qtk.engines.description import EngineDescription
from qtk.errors import InputError
from qtk.targets.runtimes import engine_parts, engine_runtimes, load_part


@dataclass(frozen=True)
class Forward:
    """The graph's inputs for one run, without the cache. Whole numbers are int64, masks bool (True = may look).

    input_ids, position_ids [batch, tokens] · write_indices [batch] · masks: name -> [batch, 1, tokens, cache] ·
    logits_positions [batch, wanted, 1].
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    write_indices: np.ndarray
    masks: Mapping[str, np.ndarray]
    logits_positions: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        """Every input by its name in the graph."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "write_indices": self.write_indices,
            "logits_positions": self.logits_positions,
            **self.masks,
        }


class Executor(Protocol):
    """Owns the weights, the cache and the runtime's buffers. Constructed from (engine directory, its description, threads)."""

    # The most tokens that one run takes well (a longer prompt comes in several runs), and the most logits that one run
    # gives for each row.
    chunk_tokens: int
    chunk_logits: int

    @property
    def compiled_before(self) -> bool | None:
        """Whether the kernels that the runtime compiles at first use were found compiled; None where it compiles none."""
        ...

    def memory_bytes(self) -> int | None:
        """Device memory that the engine has taken so far; None for a runtime without a device of its own."""
        ...

    def start(self, batch: int) -> None:
        """Begins a call with `batch` rows: the cache holds nothing from here on."""
        ...

    def reserve(self, positions: int) -> int:
        """Makes room for `positions` cache slots and keeps what is there. Returns the cache length that masks must have."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> bool:
        """Drops all rows but these: row rows[i] becomes row i, rows[i] >= i. False where the batch stays as it is."""
        ...

    def run(self, forward: Forward) -> np.ndarray:
        """Logits [batch, wanted, vocab] float32. The array may be overwritten by the next run."""
        ...

    def close(self) -> None:
        """Releases weights and buffers; nothing can be run afterwards. A second call does nothing."""
        ...


@runtime_checkable
class RowExecutor(Executor, Protocol):
    """An executor whose rows run apart: some of them in one run, while the others keep what is in their cache."""

    def open_rows(self, rows: int) -> None:
        """Begins with `rows` rows, none of which holds anything. Takes the place of `start`."""
        ...

    def select_rows(self, rows: range) -> None:
        """The rows that the next runs are of, a contiguous part of those opened. A run of several rows is of one token each."""
        ...

    def move_row(self, row: int, place: int, positions: int) -> None:
        """Copies the first `positions` cache slots of a row into the place of another."""
        ...


def open_executor(directory: Path, description: EngineDescription, threads: int | None) -> Executor:
    """The executor of an engine's backend. InputError for a backend whose runtime brings a generation loop of its own."""
    place = engine_parts(description.backend).executor
    if not place:
        run_by_qtk = [name for name, parts in engine_runtimes().items() if parts.executor]
        raise InputError(
            f"{directory} is a {description.backend} engine; qtk runs {', '.join(run_by_qtk)} engines itself."
        )
    executor: Executor = load_part(place)(directory, description, threads)
    return executor
