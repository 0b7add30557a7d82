"""Calibration activations between two steps: in memory while a budget lasts, in files beyond it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from qtk.checkpoint.atomic import atomic_file

_CHUNK_TOKENS = 4096  # tokens that one step works on, unless the budget says otherwise


class RowStore:
    """Activations [rows, seq_len, width] of one dtype, read and written by slices of rows.

    In memory, or in `file` (made at once, so that a full disk is found before any work).
    """

    def __init__(
        self,
        rows: int,
        seq_len: int,
        width: int,
        dtype: torch.dtype,
        file: Path | None = None,
        *,
        chunk_tokens: int = _CHUNK_TOKENS,
    ) -> None:
        self.shape, self.dtype, self.file = (rows, seq_len, width), dtype, file
        self.chunk_tokens = chunk_tokens
        self._row_bytes = seq_len * width * dtype.itemsize
        self._memory: torch.Tensor | None = None
        self._fd = -1
        if file is None:
            self._memory = torch.empty(self.shape, dtype=dtype)
        else:
            self._fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            os.posix_fallocate(self._fd, 0, rows * self._row_bytes)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self._row_bytes

    def chunks(self) -> Iterator[slice]:
        """Slices of rows that are worked on together, alike in size."""
        rows = self.shape[0]
        step = math.ceil(rows / max(1, round(rows * self.shape[1] / self.chunk_tokens)))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def read(self, rows: slice) -> torch.Tensor:
        """Rows as a tensor (in memory: a view, to be treated as read-only)."""
        if self._memory is not None:
            return self._memory[rows]
        count = rows.stop - rows.start
        raw = torch.empty(count * self._row_bytes, dtype=torch.uint8)
        view = memoryview(raw.numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            done += os.preadv(self._fd, [view[done:]], rows.start * self._row_bytes + done)
        return raw.view(self.dtype).view(count, *self.shape[1:])

    def write(self, rows: slice, values: torch.Tensor) -> None:
        """Replaces rows."""
        if self._memory is not None:
            self._memory[rows] = values
            return
        data = memoryview(values.contiguous().view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], rows.start * self._row_bytes + done)

    def save(self, path: Path, *, flush: bool) -> None:
        """Copies the activations into a file that appears only when it is complete; flushed to the disk on demand."""
        with atomic_file(path, flush=flush) as out:
            for rows in self.chunks():
                out.write(memoryview(self.read(rows).contiguous().view(torch.uint8).numpy().reshape(-1)))  # type: ignore[arg-type]

    def load(self, path: Path) -> None:
        """Fills the store from a file written by `save`. ValueError when its size is another."""
        if path.stat().st_size != self.nbytes:
            raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {self.nbytes}")
        with open(path, "rb") as source:
            for rows in self.chunks():
                count = (rows.stop - rows.start) * self._row_bytes
                raw = torch.frombuffer(bytearray(source.read(count)), dtype=torch.uint8)
                self.write(rows, raw.view(self.dtype).view(rows.stop - rows.start, *self.shape[1:]))

    def close(self) -> None:
        """Frees the memory, or removes the file."""
        self._memory = None
        if self._fd >= 0 and self.file is not None:
            os.close(self._fd)
            self._fd = -1
            self.file.unlink(missing_ok=True)


class ActivationBudget:
    """Hands out RowStores: in memory up to `limit_bytes` in all, in `directory` beyond.

    `used_bytes` are held in memory now, `peak_bytes` were at most; `spilled_bytes` went to files. chunk_tokens: how many tokens
    one step works on.
    """

    def __init__(self, limit_bytes: int, directory: Path, *, chunk_tokens: int = _CHUNK_TOKENS) -> None:
        self.limit_bytes, self.directory, self.chunk_tokens = limit_bytes, directory, chunk_tokens
        self.used_bytes = 0
        self.peak_bytes = 0
        self.spilled_bytes = 0
        self._count = 0

    def store(self, rows: int, seq_len: int, width: int, dtype: torch.dtype) -> RowStore:
        """A new store, in memory if the budget has room for it."""
        size = rows * seq_len * width * dtype.itemsize
        if self.used_bytes + size <= self.limit_bytes:
            self.used_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return RowStore(rows, seq_len, width, dtype, chunk_tokens=self.chunk_tokens)
        self.spilled_bytes += size
        self._count += 1
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"activations-{self._count}.bin"
        return RowStore(rows, seq_len, width, dtype, file, chunk_tokens=self.chunk_tokens)

    def copy(self, store: RowStore) -> RowStore:
        """A new store with the same activations."""
        copy = self.store(*store.shape, store.dtype)
        for chunk in store.chunks():
            copy.write(chunk, store.read(chunk))
        return copy

    def release(self, store: RowStore) -> None:
        """Closes a store and gives its room back."""
        if store.file is None:
            self.used_bytes -= store.nbytes
        store.close()
