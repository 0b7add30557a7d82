"""A file that appears under its name only when it is complete: written beside it, synced, renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qtk.checkpoint.disk import written_to
from qtk.errors import InputError


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file to write into, and renames it to `path` when the block ends without an error.

    What stood at `path` stands until then. flush: put the data on the disk before the rename, so that a power cut
    cannot leave an empty file; without, only a killed process is provided for. OSError where it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes may write one path
    try:
        with _opened(unfinished) as stream:
            yield stream
            if flush:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_files(directory: Path, pattern: str) -> list[Path]:
    """What `atomic_file` left when it was killed on its way to the names that match `pattern`. Where no other command can be writing
    them, they are to be removed."""
    found = directory.glob(f"{pattern}.*.partial")
    return [path for path in found if re.search(r"\.\d+\.partial$", path.name) and path.is_file()]


def _opened(unfinished: Path) -> BinaryIO:
    """The file, opened to be written. InputError for a directory that takes no new files, such as /proc."""
    try:
        return open(unfinished, "wb")
    except FileNotFoundError:
        if not unfinished.parent.is_dir():
            raise
        raise InputError(f"{unfinished.parent} takes no new files. Give a path elsewhere.") from None


def write_atomic(path: Path, content: str | bytes, *, flush: bool = True) -> None:
    """Writes the whole of a file at once, as `atomic_file` does; text becomes UTF-8. MachineError or InputError, naming the
    directory, where it cannot be written (see `written_to`)."""
    with written_to(path.parent), atomic_file(path, flush=flush) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
