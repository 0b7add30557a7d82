"""The one way in which a GGUF file is read: by the gguf package, which is kept from what the file cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtk.errors import InputError
from qtk.install_hints import missing_package

_MOST_READS = 4_000_000  # of numbers and texts; a vocabulary of 256,000 tokens with its merges takes two million


def read_gguf(path: Path) -> Any:
    """The file's fields and tensors, as gguf.GGUFReader; tensors lie in mapped memory.

    InputError for a file that cannot be read, or whose lengths are not true. MachineError without the gguf package.
    """
    try:
        import gguf
        import numpy as np
    except ImportError:
        raise missing_package(f"Reading {path.name}", "gguf", "gguf") from None

    class BoundedReader(gguf.GGUFReader):
        """The package's reader, which believes the lengths in the file: behind its end it would read nothing for ever."""

        _reads = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self._reads += 1
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it says that it is longer than it is")
            if self._reads > _MOST_READS:
                raise ValueError(f"it holds more than {_MOST_READS} values beside its tensors")
            return super()._get(offset, dtype, count, override_order)

    try:
        return BoundedReader(path)
    except RecursionError:
        raise InputError(f"{path} cannot be read as a GGUF file: it is nested too deep.") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as a GGUF file: {error}") from None
