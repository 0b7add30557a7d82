"""What runs the graph: the one interface between the generation loop and a runtime, and the runtimes by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from qtk.engines.description import EngineDescription
from qtk.errors import InputError


@dataclass(frozen=True)
class Step:
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
    """Owns the weights, the cache and the runtime's buffers."""

    # The most tokens that one run takes well (longer prompts come in several runs), and the most logits it gives a row.
    chunk_tokens: int
    chunk_logits: int

    @property
    def compiled_before(self) -> bool | None:
        """Whether what is compiled at first use was found compiled; None for a runtime that compiles nothing then."""
        ...

    def memory_bytes(self) -> int | None:
        """Device memory that the engine has taken so far; None for a runtime without a device of its own."""
        ...

    def start(self, batch: int) -> None:
        """Begins a call with `batch` rows: the cache holds nothing from here on."""
        ...

    def reserve(self, positions: int) -> int:
        """Makes room for `positions` cache slots, keeping what is there. Returns the cache length that masks must have."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> bool:
        """Lets go of all rows but these: row rows[i] becomes row i, rows[i] >= i. False where the batch stays as it is."""
        ...

    def run(self, step: Step) -> np.ndarray:
        """Logits [batch, wanted, vocab] float32. The array may be overwritten by the next run."""
        ...

    def close(self) -> None:
        """Lets go of weights and buffers; nothing can be run afterwards. A second time does nothing."""
        ...


# backend -> (module, class): imported when used, so that no runtime is needed for what does not use it.
EXECUTORS = {
    "onnxruntime": ("qtk.engines.onnxruntime.executor", "OnnxRuntimeExecutor"),
    "tensorrt": ("qtk.engines.tensorrt.executor", "TensorRtExecutor"),
    "tensorrt-full": ("qtk.engines.tensorrt.executor", "TensorRtExecutor"),
}


def open_executor(
    directory: Path, description: EngineDescription, threads: int | None, accuracy_level: int | None
) -> Executor:
    """The executor of an engine's backend. InputError for a backend that qtk does not run itself."""
    if description.backend not in EXECUTORS:
        raise InputError(
            f"{directory} is a {description.backend} engine; qtk runs {', '.join(EXECUTORS)} engines itself."
        )
    module, name = EXECUTORS[description.backend]
    executor: Executor = getattr(importlib.import_module(module), name)(directory, description, threads, accuracy_level)
    return executor
