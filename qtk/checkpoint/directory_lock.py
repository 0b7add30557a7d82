"""Directories that grow under their final name, as those of runs and sweeps do: one command at a time works in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtk.checkpoint.disk import written_to
from qtk.errors import InputError

_TRIES = 20  # a command that ends may remove what it had made between two calls of another one


@contextmanager
def held_directory(directory: Path) -> Iterator[None]:
    """Keeps other commands out of a directory, which is made where it is missing, until the block ends.

    The lock is on the directory itself, so that no file stays behind where a command is killed. What was made and is still empty
    at the end is removed. InputError while another command holds the directory, or where it cannot be made.
    """
    place = Path(os.path.abspath(directory))
    missing = [path for path in (place, *place.parents) if not path.exists()]
    with written_to(place.parent):
        lock = _locked(place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one of them holds something
            for path in missing:
                path.rmdir()
        os.close(lock)


def _locked(place: Path) -> int:
    for _ in range(_TRIES):
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except (FileExistsError, NotADirectoryError):
            blocking = next(p for p in (place, *place.parents) if p.is_symlink() or (p.exists() and not p.is_dir()))
            raise InputError(f"{place} cannot be written: {blocking} is not a directory. Give another place.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(f"Another qtk command is writing {place} right now.") from None
        if _is(place, lock):
            return lock
        os.close(lock)
    raise InputError(f"{place} cannot be written: directories cannot be made there. Give another place.")


def _is(place: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), place.stat())
    except FileNotFoundError:
        return False
