"""qtk-run.json: which steps of a run are done, and from what inputs, so that a second run repeats nothing that is up to
date."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from qtk.bounded.parsing import read_model
from qtk.checkpoint.atomic import write_atomic
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest, read_manifest
from qtk.errors import InputError

RUN_NAME = "qtk-run.json"


class StepRecord(BaseModel):
    """A finished step. terms: what decided its output, by name, each as a digest; digest: of them all. manifest_sha256: of
    the manifest that it wrote.

    Before there were terms, the digest was taken of the options, the inputs and qtk's version.
    """

    stage: str
    directory: str
    digest: str
    manifest_sha256: str
    terms: dict[str, str] = {}
    seconds: float


class SeenFile(BaseModel):
    """A file's sha256, trusted as long as the file's size and modification time do not change."""

    bytes: int
    modified_ns: int
    sha256: str


class RunState(BaseModel):
    """The content of qtk-run.json: the finished steps in their order, the digests of steps that were begun, files seen."""

    recipe: str
    steps: dict[str, StepRecord] = {}
    begun: dict[str, str] = {}
    seen: dict[str, SeenFile] = {}

    @staticmethod
    def load(run_dir: Path) -> RunState | None:
        """The state of a run directory, or None where no run was begun. InputError when it cannot be read."""
        path = run_dir / RUN_NAME
        try:
            return read_model(path, RunState, "cannot be read as the record of a run")
        except FileNotFoundError:
            return None

    def save(self, run_dir: Path) -> None:
        """Writes qtk-run.json as a whole."""
        write_atomic(run_dir / RUN_NAME, json.dumps(self.model_dump(), indent=2) + "\n")

    def digest_of(self, files: Iterable[Path]) -> dict[str, str]:
        """name -> sha256 of files outside the run. A file that has not changed since it was last seen is not read again."""
        digests = {}
        for path in files:
            if not path.is_file():
                raise InputError(f"{path}: no such file.")
            key, status = str(path.absolute()), path.stat()
            seen = self.seen.get(key)
            if seen is None or (seen.bytes, seen.modified_ns) != (status.st_size, status.st_mtime_ns):
                seen = SeenFile(bytes=status.st_size, modified_ns=status.st_mtime_ns, sha256=file_digest(path).sha256)
                self.seen[key] = seen
            digests[path.name] = seen.sha256
        return digests

    def keep_steps(self, names: Iterable[str]) -> None:
        """Forgets the steps that the recipe no longer has; their directories stay."""
        known = set(names)
        self.steps = {name: record for name, record in self.steps.items() if name in known}

    def stands(self, run_dir: Path, step: str) -> bool:
        """Whether the step's output is as it was written: the manifest unchanged, every file there in its full size."""
        record = self.steps.get(step)
        if record is None:
            return False
        directory = run_dir / record.directory
        manifest_path = directory / MANIFEST_NAME
        if not manifest_path.is_file() or file_digest(manifest_path).sha256 != record.manifest_sha256:
            return False
        return all(
            (directory / name).is_file() and (directory / name).stat().st_size == digest.bytes
            for name, digest in read_manifest(directory).outputs.items()
        )
