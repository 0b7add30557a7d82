"""The graph in ONNX Runtime on the processor, the cache updated in place.

A cache input and its output are bound to the same memory, so TensorScatter writes without a copy. The rows of a cache lie
one after the other, so that some of them can be bound and run by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qtk.engines.description import EngineDescription
from qtk.engines.onnxruntime.bound_rows import BoundRows
from qtk.engines.onnxruntime.rewrite import LAST_POSITION, POSITIONS, rewritten
from qtk.engines.sessions.executor import Forward
from qtk.errors import InputError
from qtk.machine import threads_for

# Attention reads the masked tail of the cache too, so the cache grows with the call: in small steps while it is short, in
# large ones when growing means copying much.
CACHE_STEPS = (32, 128)
PREFILL_CHUNK = 256
_DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16}


class OnnxRuntimeExecutor:
    """An executor (see sessions/executor.py) over one ONNX Runtime session.

    chunk: tokens and logits of one run. cache_steps: the fewest and the most slots that the cache grows by at once.
    rewrite: whether calls of one row may run the rewritten graph (see rewrite.py). These three are for tests and
    measurements. InputError for a graph that ONNX Runtime cannot load on a processor.
    """

    compiled_before: bool | None = None

    def __init__(
        self,
        directory: Path,
        description: EngineDescription,
        threads: int | None,
        *,
        chunk: int = PREFILL_CHUNK,
        cache_steps: tuple[int, int] = CACHE_STEPS,
        rewrite: bool = True,
    ) -> None:
        if description.dtype not in _DTYPES:
            raise InputError(
                f"{directory} computes in {description.dtype}, which ONNX Runtime does not support on a processor."
            )
        self.chunk_tokens = self.chunk_logits = chunk
        self._cache_steps = cache_steps
        self._dtype = _DTYPES[description.dtype]
        self._description = description
        self._path = directory / description.stages[0].file
        self._options = session_options(threads, description.accuracy_level or 0)
        # Where a graph that is given as bytes finds its weights.
        self._options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._path.parent)
        )
        self._open(rewrite=rewrite)
        self._cache_names = [
            (f"past_{kind}.{layer}", f"present_{kind}.{layer}")
            for layer in range(description.num_layers)
            for kind in ("key", "value")
        ]
        self._cache: list[np.ndarray] = []
        self._batch = 0
        self._length = 0
        # Whether rows come and go by themselves (open_rows), which rows run now, and the bindings of those that have run.
        self._apart = False
        self._selected = range(0)
        self._bindings: dict[range, BoundRows] = {}

    def _open(self, *, rewrite: bool) -> None:
        """Loads the graph: rewritten for calls of one row where that is wanted and possible, else as it is."""
        path, options = self._path, self._options
        try:
            graph = rewritten(path, self._description) if rewrite else None
            self.uses_rewrite = graph is not None
            self._session = ort.InferenceSession(
                graph or str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the libraries' errors share no base of their own
            raise InputError(
                f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}. "
                "`qtk verify` says whether a file was damaged."
            ) from None

    def memory_bytes(self) -> int | None:
        return None

    def cache(self) -> dict[str, np.ndarray]:
        """The cache as it is now, by the graph's names of its inputs: [batch, kv_heads, slots, head_dim]."""
        return {past: array for (past, _), array in zip(self._cache_names, self._cache, strict=False)}

    def start(self, batch: int) -> None:
        if batch > 1 and self.uses_rewrite:
            # The rewritten graph does not come back: the weights of both at once would take twice the memory, and loading
            # takes time.
            del self._session
            self._batch, self._cache, self._bindings = 0, [], {}
            self._open(rewrite=False)
        self._start(batch, apart=False)

    def open_rows(self, rows: int) -> None:
        self._start(rows, apart=True)

    def _start(self, rows: int, *, apart: bool) -> None:
        # Stale slots need no wiping: a slot is written before any mask lets a token look at it.
        if rows != self._batch:
            self._batch = rows
            self._cache = []
        self._apart = apart
        self._selected = range(rows)
        self._length = 0

    def select_rows(self, rows: range) -> None:
        self._selected = rows

    def move_row(self, row: int, place: int, positions: int) -> None:
        for array in self._cache:
            array[place, :, :positions] = array[row, :, :positions]

    def reserve(self, positions: int) -> int:
        if positions > self._length:
            least, most = self._cache_steps
            step = min(most, max(least, self._length // 4 // least * least))
            # The rewritten graph reads each row up to its own length, and memory that is not touched is not taken.
            whole = self._apart and self.uses_rewrite
            self._resize(self._description.limits.max_positions if whole else -(-positions // step) * step)
        return self._length

    def _resize(self, length: int) -> None:
        description, kept = self._description, self._length
        shape = (self._batch, description.num_kv_heads, length, description.head_dim)
        reuse = bool(self._cache) and self._cache[0].shape == shape
        self._length = length
        if reuse:
            return
        # Zeros, not garbage: a masked slot's value is multiplied by 0, and 0 x NaN would be NaN.
        cache = [np.zeros(shape, self._dtype) for _ in self._cache_names]
        if kept:
            for old, new in zip(self._cache, cache, strict=True):
                new[:, :, :kept] = old
        self._replace_cache(cache)

    def keep_rows(self, rows: Sequence[int]) -> bool:
        for array in self._cache:
            for new, old in enumerate(rows):
                if new != old:
                    array[new] = array[old]
        self._batch = len(rows)
        self._selected = range(self._batch)
        self._replace_cache([array[: len(rows)] for array in self._cache])
        return True

    def _replace_cache(self, cache: list[np.ndarray]) -> None:
        self._cache, self._bindings = cache, {}

    def _bound(self) -> BoundRows:
        rows = self._selected
        if rows not in self._bindings:
            parts = (array[rows.start : rows.stop] for array in self._cache)
            self._bindings[rows] = BoundRows(self._session, dict(zip(self._cache_names, parts, strict=True)))
        return self._bindings[rows]

    def run(self, forward: Forward) -> np.ndarray:
        bound = self._bound()
        bound.set_input("input_ids", forward.input_ids)
        bound.set_input("logits_positions", forward.logits_positions)
        if self.uses_rewrite:
            last = forward.position_ids[:, -1].astype(np.int32)
            bound.set_input(LAST_POSITION, last)
            bound.set_input(POSITIONS, np.array(last.max() + 1, np.int32))
        else:
            bound.set_input("position_ids", forward.position_ids)
            bound.set_input("write_indices", forward.write_indices)
            for name, mask in forward.masks.items():
                bound.set_input(name, mask)
        batch, wanted, _ = forward.logits_positions.shape
        logits = bound.run("logits", (batch, wanted, self._description.vocab_size), self._dtype)
        return logits if logits.dtype == np.float32 else logits.astype(np.float32)

    def close(self) -> None:
        self.__dict__.pop("_session", None)
        self._cache, self._bindings = [], {}


def session_options(threads: int | None, accuracy_level: int) -> ort.SessionOptions:
    """ONNX Runtime's settings. The accuracy level is always set: ONNX Runtime's default is 4, which rounds activations to
    8 bits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_for(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    return options
