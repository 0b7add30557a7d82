"""What a disk says when it takes no more, as a sentence that names the directory."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtk.errors import InputError, MachineError
from qtk.sizes import size_text

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BROKEN = (errno.EIO, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM)


@contextmanager
def written_to(directory: Path) -> Iterator[None]:
    """Turns a failure to write into an error that names `directory`: MachineError for a disk that is full or does not work, or a
    limit of this machine; InputError for one that may not be written to. Calls that write say no file, or the one they copy from."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MachineError(
                f"The disk is full: {directory} has {_free(directory)} free{_quota(error)}. Free some room and run again."
            ) from None
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(directory):
            raise  # of something else, which it names
        if error.errno in _BROKEN:
            at = f" ({error.filename})" if error.filename else ""
            raise MachineError(
                f"{directory} cannot be written: {error.strerror}{at}. Look after the disk, or give another place, and run again."
            ) from None
        if error.errno == errno.EFBIG:
            raise MachineError(
                f"A file in {directory} would be larger than this machine allows. Raise the limit (ulimit -f), and run again."
            ) from None
        if error.errno in _FORBIDDEN:
            closed = os.fsdecode(error.filename or directory)
            raise InputError(
                f"{closed}: {error.strerror}. Give another place than {directory}, or change its permissions."
            ) from None
        raise


def _free(directory: Path) -> str:
    place = next(path for path in (directory, *directory.absolute().parents) if os.path.isdir(path))
    return size_text(shutil.disk_usage(place).free)


def _quota(error: OSError) -> str:
    return ", and a quota bounds what may be written" if error.errno == errno.EDQUOT else ""


def require_text_path(path: Path) -> None:
    """InputError for a path that is not UTF-8: a manifest could not name it, which would show after the work only."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(os.path.abspath(path)).decode(errors="backslashreplace")
        raise InputError(f"{shown} is not a name in UTF-8. Give another one.") from None
