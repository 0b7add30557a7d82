"""Directories that appear under their final name only when they are complete."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.errors import InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)


def partial_path(out: Path) -> Path:
    """Where the unfinished directory lies: beside the final one, so that the rename stays on one disk."""
    return out.parent / f"{out.name}.partial"


def _lock_path(out: Path) -> Path:
    """A hidden file beside the unfinished directory, which exists as long as that does and is locked while a command writes.
    A directory of that name without such a file was not written by qtk and is never removed."""
    return out.parent / f".{out.name}.qtk-lock"


@contextmanager
def staged_directory(
    out: Path,
    *,
    overwrite: bool = False,
    resumable: bool = False,
    fresh: bool = False,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yields a directory to write into, and renames it to `out` when the block ends without an error.

    An existing `out` is refused (InputError) unless `overwrite`, and even then it is kept until the new one is complete.
    Also refused: an `out` that equals, or contains, one of `inputs`, and an `out` that another command is writing. After an
    error the unfinished directory is removed, or kept for `--resume` when `resumable`. A resumable run finds the files of an
    earlier one there, unless `fresh`. A KeyboardInterrupt that passes through says what was left behind.
    """
    require_apart(out, inputs)
    out = Path(os.path.abspath(out))
    _require_replaceable(out, overwrite)
    partial = partial_path(out)
    _make_parent(out)
    _require_ours(out)
    with _locked(out):
        # A partial directory with a manifest is complete: its command was stopped while renaming. It cannot be resumed.
        if partial.exists() and (fresh or not resumable or (partial / MANIFEST_NAME).exists()):
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
            sync_tree(partial)
            _put_in_place(partial, out)
        except BaseException as error:
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt) and not error.args:
                error.args = (_what_is_left(out, partial),)
            raise


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """InputError when `out` equals, or contains, one of `inputs`: the output would replace what it is made from."""
    place = out.resolve()
    for path in inputs:
        if path.resolve() == place:
            raise InputError(f"The output {out} is the input {path}. Give another -o.")
        if place in path.resolve().parents and place.exists():
            raise InputError(f"The input {path} lies inside the output {out}. Give another -o.")


def remove_partial(out: Path) -> None:
    """Removes the unfinished directory of an earlier run. InputError when something else has its name."""
    _require_ours(out)
    if partial_path(out).exists():
        shutil.rmtree(partial_path(out))


def _require_ours(out: Path) -> None:
    partial = partial_path(out)
    if not os.path.lexists(partial):
        return
    known = _lock_path(out).exists() or (partial.is_dir() and _written_by_qtk(partial))
    if partial.is_symlink() or not partial.is_dir() or not known:
        raise InputError(
            f"{partial} is in the way: qtk writes unfinished output under that name, but did not write this. "
            "Move it, or give another -o."
        )


def _require_replaceable(out: Path, overwrite: bool) -> None:
    if out.is_symlink():
        raise InputError(f"{out} is a symbolic link, which qtk does not replace. Give the directory itself as -o.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already. Give another -o, or --overwrite.")
    if out.exists() and not (out.is_dir() and _written_by_qtk(out)):
        raise InputError(
            f"{out} exists and was not written by qtk, so --overwrite does not replace it. Give another -o."
        )


def _written_by_qtk(directory: Path) -> bool:
    """Whether a directory may be replaced: qtk wrote it, or it is empty. A mistyped -o must not cost a home directory."""
    return (directory / MANIFEST_NAME).is_file() or not any(directory.iterdir())


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next(p for p in out.parents if p.is_symlink() or (p.exists() and not p.is_dir()))
        raise InputError(f"{out} cannot be written: {blocking} is not a directory. Give another -o.") from None


def _what_is_left(out: Path, partial: Path) -> str:
    if partial.is_dir():
        return f"What is done so far is in {partial}; the same command with --resume continues from there."
    return f"{out} is unchanged." if out.exists() else f"{out} was not written."


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the lock of `out`. The lock file stays where an unfinished directory does. InputError while another command
    holds the lock."""
    path = _lock_path(out)
    handle = _lock(path, out)
    try:
        yield
    finally:
        if not partial_path(out).exists():
            path.unlink(missing_ok=True)
        handle.close()


def _lock(path: Path, out: Path) -> IO[str]:
    while True:
        try:
            handle = open(path, "a")  # noqa: SIM115 - held as long as the lock is
        except FileNotFoundError:  # the directory exists, and takes no new files: /proc and its like
            raise InputError(f"{out} cannot be written: {path.parent} takes no new files. Give another -o.") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise InputError(f"Another qtk command is writing {out} right now.") from None
        if _names(path, handle):
            return handle
        handle.close()  # the previous holder removed the file between open and lock: this lock protects nothing


def _names(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync_tree(directory: Path) -> None:
    """Flushes a directory, and every file and directory below it, to the disk."""
    for root, _, files in os.walk(directory):
        for path in [*(os.path.join(root, f) for f in files), root]:
            _sync(path)


def _sync(path: Path | str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _put_in_place(partial: Path, out: Path) -> None:
    """Renames `partial` to `out`. An existing `out` is exchanged with it in one step where the system can, so that there is
    always a complete directory of that name."""
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    replaces = out.exists()
    if not replaces:
        os.rename(partial, out)
    elif exchange(partial, out):
        os.rename(partial, old)
    else:
        _replace_in_two_steps(partial, out, old)
    _sync(out.parent)
    if replaces:
        shutil.rmtree(old)


def _replace_in_two_steps(partial: Path, out: Path, old: Path) -> None:
    os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        os.rename(old, out)
        raise


def exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step (Linux, most file systems). False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first))
