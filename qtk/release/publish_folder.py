"""Publishing into a directory, such as a mounted share, through fsspec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fsspec

from qtk.checkpoint.directory_lock import held_directory
from qtk.checkpoint.disk import written_to
from qtk.checkpoint.manifest import SIGNATURE_NAME, SUMS_NAME
from qtk.errors import InputError
from qtk.progress import Progress
from qtk.release.destinations import OwnFile, RemoteFile, RemoteState, Wishes, local_digest


class PublishedFolder:
    """A directory. Each file appears under its name when it is complete, the list of sums last: what is there without it is not
    complete."""

    def __init__(self, place: str, wishes: Wishes) -> None:
        if wishes.private or wishes.revision is not None:
            raise InputError("--private and --revision are for hubs; a directory has neither.")
        self.address = f"file://{place}"
        self._files, self._root = fsspec.core.url_to_fs(self.address)

    def state(self, bundle: Path) -> RemoteState:
        place = Path(self._root).resolve()
        if bundle.resolve() in (place, *place.parents):
            raise InputError(f"{self.address} lies in the bundle itself. Give a directory elsewhere.")
        if not self._files.exists(self._root):
            return RemoteState(exists=False)
        if not self._files.isdir(self._root):
            raise InputError(f"{self.address} is not a directory.")
        listed = self._files.find(self._root, detail=True)
        prefix = len(self._root.rstrip("/")) + 1
        there = {
            path[prefix:]: RemoteFile(facts["size"], digest=local_digest(Path(path))) for path, facts in listed.items()
        }
        return RemoteState(exists=True, files=there)

    def send(self, bundle: Path, files: Sequence[OwnFile], before: RemoteState) -> str:
        with held_directory(Path(self._root)), written_to(Path(self._root)):
            if _sizes(self.state(bundle)) != _sizes(before):
                raise InputError(f"{self.address} changed while this command ran. Run it again.")
            return self._send(files)

    def _send(self, files: Sequence[OwnFile]) -> str:
        last = (SUMS_NAME, SIGNATURE_NAME)
        with Progress("publish", sum(file.bytes for file in files) // 10**6, "MB") as progress:
            for file in sorted(files, key=lambda file: file.name in last):
                target = f"{self._root}/{file.name}"
                unfinished = f"{target}.partial"
                self._files.makedirs(self._files._parent(target), exist_ok=True)
                try:
                    self._files.put_file(str(file.path), unfinished)
                    self._files.mv(unfinished, target)
                except BaseException:
                    if self._files.exists(unfinished):
                        self._files.rm_file(unfinished)
                    raise
                progress.advance(file.bytes // 10**6, file.name)
        return self.address


def _sizes(state: RemoteState) -> dict[str, int]:
    return {name: file.bytes for name, file in state.files.items()}
