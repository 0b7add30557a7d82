"""The kernels that TensorRT-RTX compiles at first use, kept in a file beside the engine so that the next start finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtk.checkpoint.atomic import atomic_file
from qtk.progress import note


class RuntimeCache:
    """The cache of one engine directory, shared by the contexts of its plans. `found`: whether a usable file was there; None
    for a library without such caches. The file lies beside the engine and not in it, because the engine's manifest lists every
    file of the directory.
    """

    def __init__(self, directory: Path) -> None:
        whole = directory.resolve()
        self.file = whole.parent / f"{whole.name}.runtime-cache"
        self.found: bool | None = None
        self._cache: Any = None

    def of(self, config: Any) -> Any:
        """TensorRT-RTX's cache object with the content of the file. The first config creates it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            content = self._content()
            self.found = bool(content) and bool(self._cache.deserialize(content))
            if content and not self.found:
                note(f"{self.file} is from another GPU, driver or TensorRT-RTX, so kernels are compiled again.")
        return self._cache

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError:
            return b""

    def save(self) -> None:
        """Writes the file, whole or not at all. A file that cannot be written is only reported: the engine runs without it."""
        if self._cache is None:
            return
        try:
            with atomic_file(self.file, flush=False) as stream:
                stream.write(self._cache.serialize())
        except OSError as error:
            note(f"{self.file} cannot be written ({error.strerror}): kernels are compiled again at the next start.")
