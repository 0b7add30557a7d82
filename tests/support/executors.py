"""Executors for tests: a runtime's own executor, with each run seen or changed on its way to the session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qtk.engines.onnxruntime.executor import OnnxRuntimeExecutor
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.executor import Executor, Forward
from qtk.engines.sessions.session import DecoderSession, read_built

TO_THE_END = Decoding(ignore_eos=True)


class ChangedExecutor:
    """An executor whose logits go through `change(logits, forward)`."""

    def __init__(self, inner: Executor, change: Callable[[np.ndarray, Forward], np.ndarray]) -> None:
        self._inner, self._change = inner, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, forward: Forward) -> np.ndarray:
        return self._change(self._inner.run(forward).copy(), forward)


def changed(session: DecoderSession, change: Callable[[np.ndarray, Forward], np.ndarray]) -> DecoderSession:
    """The same engine, whose logits go through `change`."""
    return DecoderSession(session.directory, session.description, ChangedExecutor(session.executor, change))


def recorded(session: DecoderSession) -> tuple[DecoderSession, list[np.ndarray]]:
    """The same engine, and a list to which each run appends its logits."""
    runs: list[np.ndarray] = []

    def keep(logits: np.ndarray, forward: Forward) -> np.ndarray:
        runs.append(logits)
        return logits

    return changed(session, keep), runs


def open_on_processor(engine: Path, threads: int = 2, **settings: Any) -> DecoderSession:
    """A session of a CPU engine with settings of its executor (see OnnxRuntimeExecutor)."""
    description = read_built(engine)
    return DecoderSession(engine, description, OnnxRuntimeExecutor(engine, description, threads, **settings))
