"""Rows of the cache with everything that a run of them reads and writes, bound to memory once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort


class BoundRows:
    """One ONNX Runtime binding: a cache whose inputs and outputs share their memory, and buffers for the other inputs.

    Buffers stay bound between runs of the same shape: a decode step only copies a few small arrays into them.
    """

    def __init__(self, session: ort.InferenceSession, cache: Mapping[tuple[str, str], np.ndarray]) -> None:
        """cache: (name of the input, name of the output) -> [rows, kv_heads, slots, head_dim], contiguous."""
        self._session = session
        self._binding = session.io_binding()
        # The binding knows addresses only: the arrays have to live as long as it does.
        self._cache = dict(cache)
        self._bound: dict[str, np.ndarray] = {}
        for (past, present), array in cache.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)

    def set_input(self, name: str, array: np.ndarray) -> None:
        """Copies an input into its buffer."""
        bound = self._bound.get(name)
        if bound is not None and bound.shape == array.shape:
            np.copyto(bound, array)
            return
        # On the processor an OrtValue uses the array's own memory: later runs of this shape only copy into it.
        self._bound[name] = bound = np.array(array, order="C")
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(bound))

    def run(self, output: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """Runs the graph. Returns the output, whose memory the next run of this shape writes again."""
        bound = self._bound.get(output)
        if bound is None or bound.shape != shape:
            self._bound[output] = bound = np.empty(shape, dtype)
            self._binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(bound))
        self._session.run_with_iobinding(self._binding)
        return bound
