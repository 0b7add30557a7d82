"""A directory that appears under its final name only when it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.errors import InputError


def partial_path(out: Path) -> Path:
    """Where the unfinished directory lies: beside the final one, so that the rename stays on one disk."""
    return out.parent / f"{out.name}.partial"


@contextmanager
def staged_directory(
    out: Path, *, overwrite: bool = False, resumable: bool = False, fresh: bool = False
) -> Iterator[Path]:
    """Yields a directory to write into, and renames it to `out` when the block ends without an error.

    An existing `out` is refused (InputError) unless `overwrite`, and even then it stands until the new one is
    complete. After an error the unfinished directory is removed, or kept for `--resume` when `resumable`; a resumable
    run finds what an earlier one left there, unless `fresh`. Two runs at once on one `out` are refused.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already. Give another -o, or --overwrite.")
    if out.exists() and not _written_by_qtk(out):
        raise InputError(
            f"{out} exists and was not written by qtk, so --overwrite does not replace it. Give another -o."
        )
    if not out.parent.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    lock = _lock(partial)
    try:
        if partial.exists() and (fresh or not resumable):
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
            _sync_tree(partial)
            _put_in_place(partial, out)
        except BaseException:
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.unlink(lock.name)
        lock.close()


def _written_by_qtk(out: Path) -> bool:
    """Whether losing `out` is what --overwrite was meant for: a mistyped -o must not cost a home directory."""
    return out.is_dir() and ((out / MANIFEST_NAME).is_file() or not any(out.iterdir()))


def _lock(partial: Path) -> IO[str]:
    handle = open(partial.with_suffix(".lock"), "w")  # noqa: SIM115 - held as long as the lock is
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise InputError(f"Another qtk command is writing {partial.with_suffix('')} at this moment.") from None
    return handle


def _sync_tree(directory: Path) -> None:
    for root, _, files in os.walk(directory):
        for path in [*(os.path.join(root, f) for f in files), root]:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _put_in_place(partial: Path, out: Path) -> None:
    old = None
    if out.exists():
        old = out.parent / f".{out.name}.replaced-{os.getpid()}"
        os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        if old is not None:
            os.rename(old, out)
        raise
    fd = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
