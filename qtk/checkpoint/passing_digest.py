"""The sha256 of a file from its bytes as they pass by, so that nobody has to read them again."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from qtk.checkpoint.manifest import FileDigest

_PIECE = 1 << 22


class PassingDigest:
    """The digest of one file, of which whoever reads or writes it shows the bytes in rising order of their place.

    What nobody shows (a header, tensors that are not needed, or bytes shown too late) is read from the file when the digest
    gets there; `bytes_read` counts these. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._lock = threading.Lock()

    def show(self, offset: int, data: memoryview) -> None:
        """Takes the bytes that stand at `offset`. Those before it that were not shown are read."""
        with self._lock:
            if offset < self._position:
                return
            self._read_up_to(offset)
            self._sha256.update(data)
            self._position = offset + len(data)

    def finish(self) -> FileDigest:
        """The digest of the whole file, as long as it is now."""
        with self._lock:
            size = self.path.stat().st_size
            self._read_up_to(size)
            return FileDigest(sha256=self._sha256.hexdigest(), bytes=size)

    def _read_up_to(self, end: int) -> None:
        if self._position >= end:
            return
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), self._position, end - self._position, os.POSIX_FADV_SEQUENTIAL)
            file.seek(self._position)
            while self._position < end and (piece := file.read(min(_PIECE, end - self._position))):
                self._sha256.update(piece)
                self._position += len(piece)
                self.bytes_read += len(piece)
