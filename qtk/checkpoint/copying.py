"""Files of one directory in another: as a clone or a second name where the file system can, else copied and digested in one
reading."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qtk.checkpoint.atomic import atomic_file
from qtk.checkpoint.manifest import BLOCK, FileDigest
from qtk.errors import InputError

_FICLONE = 0x40049409  # of ioctl_ficlone(2): the new file shares the old one's blocks until either is written
# Smaller files are copied: people edit them in place, and a second name would change with the first.
_WORTH_SHARING = 64 * 2**20
_CANNOT = (
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EXDEV,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EPERM,
    errno.EMLINK,
    errno.EACCES,
)


def share_file(source: Path, target: Path) -> bool:
    """Makes `target` hold what `source` holds without reading it: as a clone (reflink), else as a hard link. False, and no file,
    where the file is small or the file system can do neither."""
    if source.stat().st_size < _WORTH_SHARING:
        return False
    return _cloned(source, target) or _linked(source, target)


def copy_digesting(source: Path, target: Path, on_block: Callable[[], object]) -> FileDigest:
    """Copies a file, which appears under its name when it is complete, and digests it in the same reading. on_block: called for
    each MiB."""
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(BLOCK))
    try:
        stream = open(source, "rb", buffering=0)  # noqa: SIM115 - an error of the target is another one
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}.") from None
    with stream, atomic_file(target) as written:
        while count := stream.readinto(block):
            digest.update(block[:count])
            written.write(block[:count])
            size += count
            on_block()
    shutil.copymode(source, target)
    return FileDigest(sha256=digest.hexdigest(), bytes=size)


def _cloned(source: Path, target: Path) -> bool:
    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            target.unlink()
            if error.errno not in _CANNOT:
                raise
            return False
    shutil.copymode(source, target)
    return True


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True
