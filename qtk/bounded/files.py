"""Reads whole files, up to a size: a device, a pipe and a file of any length can have the name of a config."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from qtk.errors import InputChanged, InputError, listing
from qtk.sizes import size_text

# The largest that a file of settings may be. Model configs have some kilobytes; the index of a large model some megabytes.
SETTINGS_LIMIT = 64_000_000
_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes of one name, letters of a path (Linux)


def read_bounded(path: Path, limit: int = SETTINGS_LIMIT) -> bytes:
    """The content of a regular file, or of a pipe that a shell made (/dev/fd/63), of at most `limit` bytes.

    FileNotFoundError where there is no such file; InputError for one that is longer, is a directory or a device, or cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_finite(path, number)
            content = _read(number, limit + 1)
        finally:
            os.close(number)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            raise
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > limit:
        raise InputError(f"{path} is longer than {size_text(limit)}, so it is not what it is taken for.")
    return content


def _require_finite(path: Path, number: int) -> None:
    """InputError unless the open file is a regular one, or a pipe that a shell made, which is set to wait for its writer."""
    mode = os.fstat(number).st_mode
    if stat.S_ISFIFO(mode) and str(path).startswith("/dev/"):
        os.set_blocking(number, True)
    elif not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a directory"
        raise InputError(f"{path} cannot be read: it is {kind}.")


def _read(number: int, most: int) -> bytes:
    pieces: list[bytes] = []
    while most > 0 and (piece := os.read(number, min(most, 1 << 20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def read_bounded_text(path: Path, limit: int = SETTINGS_LIMIT) -> str:
    """The content of a file as UTF-8 text, as `read_bounded` reads it. InputError for other bytes."""
    try:
        return read_bounded(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None


def require_inside(directory: Path, name: str, where: object) -> Path:
    """directory / name, for a name that a file says. InputError for one that leads out of the directory: absolute, with "..", or
    through a link. `where` is the file that names it."""
    try:
        path = directory / name_inside(name)
    except ValueError:
        path = None
    if path is None or not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{where} names {name!r}, which does not lie inside {directory}.")
    return path


def name_inside(name: str) -> str:
    """A name that a file says of another one, which must lie in a directory of its own choosing. ValueError for one that leads out of
    it, absolute or with "..", and for one that is longer than a name can be."""
    if not name or "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
        raise ValueError(f"{name!r} does not lie inside the directory")
    if len(name) > _LONGEST_PATH or any(
        len(part.encode(errors="replace")) > _LONGEST_NAME for part in Path(name).parts
    ):
        raise ValueError(f"{name[:60]!r}... is longer than the name of a file can be")
    return name


def file_state(place: Path | int) -> tuple[int, int, int, int] | None:
    """What tells a file that was written to, or replaced, from the one that it was: device, inode, size, time of the last change.
    place: its path, or a descriptor of it. None where there is no such file."""
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_unchanged(states: Mapping[Path, tuple[int, int, int, int] | None]) -> None:
    """InputChanged naming the files that are no longer as they were: what was read of them may be of two states."""
    if changed := [path for path, state in states.items() if file_state(path) != state]:
        raise InputChanged(
            f"These files were written to while they were read:\n{listing(changed)}\n"
            "Wait until the download or training that writes them has ended, and run the command again."
        )
