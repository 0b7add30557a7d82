"""Where a bundle can be published: what every such place can say and do, and what of its files are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from qtk.checkpoint.manifest import file_digest

FileStatus = Literal["new", "same", "differs"]


@dataclass(frozen=True)
class RemoteFile:
    """A file that is there. sha256, git_blob: of its content, as far as the place knows them; digest: takes its sha256 where only
    reading tells."""

    bytes: int
    sha256: str | None = None
    git_blob: str | None = None
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class RemoteState:
    """What is at a place. exists: whether there is a repository or directory; public: whether everybody sees it (None: unknown);
    commit: which state this is."""

    exists: bool
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    public: bool | None = None
    commit: str | None = None


@dataclass(frozen=True)
class OwnFile:
    """A file of the bundle."""

    name: str
    path: Path
    bytes: int
    sha256: str

    def status(self, there: RemoteFile | None) -> FileStatus:
        """How it stands to the file of its name at a place."""
        if there is None:
            return "new"
        if there.bytes != self.bytes:
            return "differs"
        if there.sha256 is not None:
            return "same" if there.sha256 == self.sha256 else "differs"
        if there.git_blob is not None:
            return "same" if there.git_blob == _git_blob(self.path, self.bytes) else "differs"
        return "same" if there.digest is not None and there.digest() == self.sha256 else "differs"


@dataclass(frozen=True)
class Wishes:
    """How to publish. revision: the branch; None for the place's own. message: of the commit. licence: that a new repository is
    labelled with, as the base's card names it; empty where nothing does."""

    private: bool = False
    revision: str | None = None
    message: str = ""
    licence: str = ""


class Destination(Protocol):
    """A place. Both functions raise InputError where the user may not, MachineError where the place cannot be reached or does not
    manage."""

    address: str

    def state(self, bundle: Path) -> RemoteState:
        """What is there now. InputError where `bundle` cannot go there."""
        ...

    def send(self, bundle: Path, files: Sequence[OwnFile], before: RemoteState) -> str:
        """Brings the files there, all or none of them visible where the place can do that. Returns where they are to be seen."""
        ...


def local_digest(path: Path) -> Callable[[], str]:
    """Takes the sha256 of a file that lies on this machine."""
    return lambda: file_digest(path).sha256


def _git_blob(path: Path, size: int) -> str:
    """git's name of a file's content."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
