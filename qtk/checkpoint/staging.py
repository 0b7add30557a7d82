"""A directory that appears under its final name only when it is complete."""

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
    """A hidden file beside it, locked while a command writes, and there as long as the unfinished directory is: what
    has that name without it was not written by qtk, and is never removed."""
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

    An existing `out` is refused (InputError) unless `overwrite`, and even then it stands until the new one is
    complete. So is an `out` that is one of `inputs`, or holds one. After an error the unfinished directory is removed,
    or kept for `--resume` when `resumable`; a resumable run finds what an earlier one left there, unless `fresh`. Two
    runs at once on one `out` are refused. A KeyboardInterrupt that passes through says what was left.
    """
    require_apart(out, inputs)
    out = Path(os.path.abspath(out))
    _require_replaceable(out, overwrite)
    partial = partial_path(out)
    _make_parent(out)
    _require_ours(out)
    with _locked(out):
        # With a manifest it is complete, and was stopped on its way to or from the final name: nothing to go on with.
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
    """InputError when `out` is one of `inputs` or holds one: it would replace what it is made from."""
    place = out.resolve()
    for path in inputs:
        if path.resolve() == place:
            raise InputError(f"The output {out} is the input {path}. Give another -o.")
        if place in path.resolve().parents and place.exists():
            raise InputError(f"The input {path} lies in the output {out}. Give another -o.")


def remove_partial(out: Path) -> None:
    """Removes what an earlier run left of `out`. InputError for something of that name that qtk did not write."""
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
            f"{partial} is in the way: unfinished output goes by that name, and this was not written by qtk. "
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
    """Whether losing it is what was meant: a mistyped -o must not cost a home directory."""
    return (directory / MANIFEST_NAME).is_file() or not any(directory.iterdir())


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next(p for p in out.parents if p.is_symlink() or (p.exists() and not p.is_dir()))
        raise InputError(f"{out} cannot be written: {blocking} is not a directory. Give another -o.") from None


def _what_is_left(out: Path, partial: Path) -> str:
    if partial.is_dir():
        return f"What is done so far lies in {partial}; the same command with --resume goes on from there."
    return f"{out} is what it was." if out.exists() else "Nothing was left under the final name."


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the lock of `out`; it is left where an unfinished directory is. InputError while another command holds it."""
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
        handle = open(path, "a")  # noqa: SIM115 - held as long as the lock is
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise InputError(f"Another qtk command is writing {out} at this moment.") from None
        if _names(path, handle):
            return handle
        handle.close()  # the holder before unlinked it between the two calls: this lock is on nothing


def _names(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync_tree(directory: Path) -> None:
    """Puts every file and directory in it on the disk."""
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
    """Renames `partial` to `out`; a directory that stands there is exchanged with it, so that one of them always does."""
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    replaces = out.exists()
    if not replaces:
        os.rename(partial, out)
    elif _exchange(partial, out):
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


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step (Linux, most file systems); False where that cannot be done."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one))
