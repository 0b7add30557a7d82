"""Directories that appear under their final name only when they are complete."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qtk.checkpoint.atomic import unfinished_files
from qtk.checkpoint.begun import UnfinishedWork
from qtk.checkpoint.disk import require_text_path, written_to
from qtk.checkpoint.manifest import MANIFEST_NAME, settle_pending
from qtk.errors import InputChanged, InputError, QtkError
from qtk.progress import note

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)


def partial_path(out: Path) -> Path:
    """Where the unfinished directory lies: beside the final one, so that the rename stays on one disk."""
    return out.parent / f"{out.name}.partial"


def _lock_path(out: Path) -> Path:
    """A hidden file beside the unfinished directory, which exists as long as that does and is locked while a command writes.
    A directory of that name without such a file was not written by qtk and is never removed."""
    return out.parent / f".{out.name}.qtk-lock"


@dataclass(frozen=True)
class Resumption:
    """How a command goes on with its own unfinished work.

    wanted: --resume was given. facts: what decides the result now, by name. unfinished: reads what a directory holds of
    such work, None where nothing in it can be continued.
    """

    wanted: bool
    facts: Mapping[str, Any]
    unfinished: Callable[[Path], UnfinishedWork | None]


@contextmanager
def staged_directory(
    out: Path,
    *,
    overwrite: bool = False,
    resumption: Resumption | None = None,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yields a directory to write into, and renames it to `out` when the block ends without an error.

    An existing `out` is refused (InputError) unless `overwrite`, and even then it is kept until the new one is complete.
    Also refused: an `out` that equals, or contains, one of `inputs`, and an `out` that another command is writing.

    After an error the unfinished directory is removed, or kept for `--resume` where there is a `resumption` and no input has
    changed (InputChanged). What an earlier
    command left there is never removed in silence: work that can be resumed is refused (InputError) unless it is resumed or
    `overwrite` starts again; the remains of a killed command, which nothing can continue, are removed with a note.
    A KeyboardInterrupt that passes through says what was left behind.
    """
    sources = list(inputs)
    for path in (out, *sources):
        require_text_path(path)
    require_apart(out, sources)
    out = Path(os.path.abspath(out))
    with written_to(out.parent):
        yield from _staged(out, overwrite, resumption)


def _staged(out: Path, overwrite: bool, resumption: Resumption | None) -> Iterator[Path]:
    _require_replaceable(out, overwrite)
    partial = partial_path(out)
    _make_parent(out)
    _require_ours(out)
    with _locked(out) as lock:
        _require_replaceable(out, overwrite)  # another command may have ended between the first look and the lock
        _remove_replaced(out)
        if partial.exists():
            _settle_what_lies_there(out, overwrite, resumption)
        partial.mkdir(exist_ok=True)
        for path in unfinished_files(partial, "**/*"):
            path.unlink()
        try:
            yield partial
            sync_tree(partial)
            _require_still_replaceable(out, overwrite)
            _put_in_place(partial, out, lock)
        except BaseException as error:
            _require_not_removed(partial, error)
            if (resumption is None and not isinstance(error, _NameTaken)) or isinstance(error, InputChanged):
                shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt) and not error.args:
                error.args = (_what_is_left(out, partial),)
            raise


def _require_not_removed(partial: Path, error: BaseException) -> None:
    """InputError for an error of any library whose cause is that somebody removed the directory that it wrote into."""
    of_a_name = not isinstance(error, OSError) or error.errno == errno.ENOENT
    if isinstance(error, Exception) and not isinstance(error, QtkError) and of_a_name and not partial.is_dir():
        raise InputError(f"{partial} was removed while this command wrote it. Run the command again.") from None


class _NameTaken(InputError):
    """Something appeared under the name of a directory while it was written: what is complete stays beside it."""


def _require_still_replaceable(out: Path, overwrite: bool) -> None:
    try:
        _require_replaceable(out, overwrite)
    except InputError:
        raise _NameTaken(
            f"{out} appeared while this command ran, and is not replaced. What the command wrote is complete: "
            f"`mv {partial_path(out)} NAME` gives it another name."
        ) from None


def _settle_what_lies_there(out: Path, overwrite: bool, resumption: Resumption | None) -> None:
    """Decides about an unfinished directory of an earlier command: it stays to be resumed, is removed, or is refused."""
    partial = partial_path(out)
    settle_pending(partial)
    if not any(partial.iterdir()):
        return
    if (partial / MANIFEST_NAME).exists():
        _settle_complete(out, overwrite)
        return
    work = resumption.unfinished(partial) if resumption is not None else None
    if resumption is None or work is None:
        note(f"{partial} was left by a command that was killed, and nothing in it can be continued: starting again.")
        shutil.rmtree(partial)
        return
    differing = work.begun.differing(resumption.facts)
    if resumption.wanted and not differing:
        return
    lies_there = f"{partial} holds unfinished work: {work.sentence()}."
    if not resumption.wanted and overwrite:
        note(f"{lies_there} It is removed, because --overwrite starts again.")
        shutil.rmtree(partial)
        return
    raise InputError(f"{lies_there} {_ways_on(work, differing)}")


def _ways_on(work: UnfinishedWork, differing: list[str]) -> str:
    again = "--overwrite without --resume removes it and starts again."
    if not differing:
        return f"--resume continues it; {again}"
    if not work.begun.facts:
        return f"It does not say what it was begun with, so it cannot be continued. {again}"
    return (
        f"It was begun with another {', another '.join(differing)}, so this command cannot continue it. "
        f"Repeat the earlier command with --resume, or give another -o; {again}"
    )


def _settle_complete(out: Path, overwrite: bool) -> None:
    """A partial directory with a manifest is complete: its command was killed while renaming it."""
    partial = partial_path(out)
    if not overwrite:
        raise InputError(
            f"{partial} is complete: the command that wrote it was killed just before it gave it its name. "
            f"`mv {partial} {out}` does that; --overwrite makes it again."
        )
    note(f"{partial} is the complete output of an earlier command. It is removed, because --overwrite starts again.")
    shutil.rmtree(partial)


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """InputError when `out` equals, or contains, one of `inputs`: the output would replace what it is made from."""
    place = out.resolve()
    for path in inputs:
        if path.resolve() == place:
            raise InputError(f"The output {out} is the input {path}. Give another -o.")
        if place in path.resolve().parents and place.exists():
            raise InputError(f"The input {path} lies inside the output {out}. Give another -o.")


def remove_partial(out: Path, why: str) -> None:
    """Removes the unfinished directory of an earlier run, and says so. InputError when something else has its name."""
    _require_ours(out)
    if partial_path(out).exists():
        note(f"{partial_path(out)} was left unfinished and is removed: {why}.")
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
def _locked(out: Path) -> Iterator[IO[str]]:
    """Holds the lock of `out`. The lock file stays where an unfinished directory does: one that is complete is known by its manifest.
    InputError while another command holds the lock."""
    handle = _lock(_lock_path(out), out)
    try:
        yield handle
    finally:
        partial = partial_path(out)
        if not partial.exists() or (partial / MANIFEST_NAME).exists():
            _remove_lock(out, handle)
        handle.close()


def _remove_lock(out: Path, handle: IO[str]) -> None:
    if _names(_lock_path(out), handle):  # else it is the lock of another command, which came since this one was removed
        _lock_path(out).unlink()


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
            flush_file(path)


def flush_file(path: Path | str) -> None:
    """Flushes a file or directory to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_flush(path: Path, start: int, stop: int) -> None:
    """Lets the disk begin to write these bytes of a file, and does not wait for it. Their pages are then dropped where they are
    written already, which those just filled are not: Linux has no other call for this in Python."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _put_in_place(partial: Path, out: Path, lock: IO[str]) -> None:
    """Renames `partial` to `out`. An existing `out` is exchanged with it in one step where the system can, so that there is
    always a complete directory of that name. For a new name the lock's file goes first: a command that is killed behind the rename
    leaves nothing but its output."""
    old = out.parent / f"{_replaced(out)}{os.getpid()}"
    replaces = out.exists()
    if not replaces:
        if (partial / MANIFEST_NAME).exists():
            _remove_lock(out, lock)
        os.rename(partial, out)
    elif exchange(partial, out):
        os.rename(partial, old)
    else:
        _replace_in_two_steps(partial, out, old)
    flush_file(out.parent)
    if replaces:
        shutil.rmtree(old)


def _replaced(out: Path) -> str:
    """How the hidden name begins that a replaced directory has until it is removed; the number of a process ends it."""
    return f".{out.name}.replaced-"


def _remove_replaced(out: Path) -> None:
    """Removes what a command left behind that was killed while it removed the directory that it had replaced."""
    if not (out / MANIFEST_NAME).is_file():
        return  # what was set aside may be the only complete directory
    for path in sorted(out.parent.glob(f"{glob.escape(_replaced(out))}*")):
        if path.name.removeprefix(_replaced(out)).isdigit() and path.is_dir() and not path.is_symlink():
            note(f"{path} was replaced by {out} in a command that was killed: it is removed.")
            shutil.rmtree(path)


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
