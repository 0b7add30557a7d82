"""qtk-manifest.json: which command made a directory, from which inputs, with which versions; and the check of the chain
of manifests."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

import qtk
from qtk.bounded.files import file_state, name_inside, require_unchanged
from qtk.bounded.parsing import read_model
from qtk.checkpoint.disk import require_text_path
from qtk.checkpoint.publishing import found_path, publishable, recorded_path, redact_tree, typed_command
from qtk.checkpoint.reader import CARD_NAME
from qtk.errors import InputError
from qtk.machine import machine, package_versions, threads_for
from qtk.progress import Progress, warnings_since, warnings_so_far

MANIFEST_NAME = "qtk-manifest.json"
PENDING_NAME = "qtk-manifest.json.pending"
# Of a bundle: every file's sha256, the manifest's included, and the signature of that list.
SUMS_NAME, SIGNATURE_NAME = "SHA256SUMS", "SHA256SUMS.sig"
BLOCK = 2**20  # bytes read at a time
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "onnx",
    "onnxruntime",
    "numpy",
    "tensorrt-rtx-cu13",
    "tensorrt",
    "tensorrt-llm",
)


class FileDigest(BaseModel):
    """The sha256 and size of an output file."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    bytes: int


class InputRecord(BaseModel):
    """An input: a directory or file, its path (see `recorded_path`), and the sha256 of each of its files.

    `manifest_sha256` is the digest of the input's own manifest where it has one: the link of the chain.
    """

    model_config = ConfigDict(frozen=True)
    role: str
    path: str
    files: dict[Annotated[str, AfterValidator(name_inside)], str]
    manifest_sha256: str | None = None


class Manifest(BaseModel):
    """The record beside every output. Times are ISO 8601 UTC, memory in bytes. warnings: what the command warned of."""

    model_config = ConfigDict(frozen=True)
    qtk_version: str
    kind: str
    command: list[str]
    options: dict[str, Any]
    inputs: list[InputRecord]
    outputs: dict[Annotated[str, AfterValidator(name_inside)], FileDigest]
    packages: dict[str, str]
    machine: dict[str, Any]
    started: str
    ended: str
    seconds: float
    peak_memory_bytes: int
    notes: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class ManifestRecorder:
    """Collects the facts of a command from its start; `write` adds the outputs and writes the manifest.

    threads: how many digest files at once (None: OMP_NUM_THREADS, else every usable core). warned: how many warnings the
    process had given when the command began (None: until now), so that the manifest takes the command's own."""

    def __init__(
        self, kind: str, options: Mapping[str, Any], threads: int | None = None, *, warned: int | None = None
    ) -> None:
        self._warned = warnings_so_far() if warned is None else warned
        self.kind, self.threads = kind, threads_for(threads)
        self.options = dict(options)
        self.notes: dict[str, Any] = {}
        self._inputs: list[tuple[str, Path, list[Path]]] = []
        self._states: dict[Path, tuple[int, int, int, int] | None] = {}
        self._digests: dict[Path, FileDigest] = {}
        self._started = datetime.datetime.now(datetime.UTC)
        self._clock = time.monotonic()

    def add_input(self, role: str, path: Path, files: Iterable[Path]) -> None:
        """Records an input, before it is read. Its files are digested when the manifest is written, which is refused where one of
        them was written to in the meantime."""
        listed = list(files)
        for file in listed:
            require_text_path(file)
        self._inputs.append((role, Path(path), listed))
        self._states = {**{file: file_state(file) for file in listed}, **self._states}

    def know(self, digests: Mapping[Path, FileDigest]) -> None:
        """Takes digests that were made while the files were read or written, so that they are not read again."""
        self._digests |= digests

    def digest(self, directory: Path, leave_out: Sequence[Path] = ()) -> list[Path]:
        """Digests the inputs and every file in `directory` except `leave_out` and what lies below it, ahead of `write`: none of them may
        change afterwards. Returns the outputs."""
        outputs = [p for p in output_files(directory) if not {p, *p.parents}.intersection(leave_out)]
        self._take([*outputs, *(path for _, _, files in self._inputs for path in files)])
        return outputs

    def _take(self, paths: Iterable[Path]) -> None:
        """Digests those of the files that were not digested yet."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._digests]
        self._digests |= digest_files(missing, threads=self.threads)

    def changed_inputs(self) -> list[Path]:
        """The files of inputs that are not what the input's own manifest says: changed, gone, or not named there. Digests the
        inputs ahead of `write`, as `digest` does."""
        self._take(path for _, _, files in self._inputs for path in files)
        changed = []
        for _, path, files in self._inputs:
            if not (path / MANIFEST_NAME).is_file():
                continue
            recorded = {name: digest.sha256 for name, digest in read_manifest(path).outputs.items()}
            found = {str(file.relative_to(path)): self._digests[file].sha256 for file in files}
            names = sorted(recorded.keys() | found.keys())
            changed += [path / name for name in names if recorded.get(name) != found.get(name)]
        return changed

    def write(
        self,
        directory: Path,
        final: Path,
        peak_memory_bytes: int,
        *,
        remove: Sequence[Path] = (),
        before: Callable[[Manifest, str], None] | None = None,
    ) -> Manifest:
        """Digests inputs and outputs and writes the manifest. `directory` holds the files, `final` is its final name.

        remove: what served to make the outputs. It goes when the manifest is there under another name, so that a command that is
        killed in between has lost nothing (see `settle_pending`). before: writes what holds the manifest's digest; it is given the
        manifest and its text before that is written, because a directory with a manifest counts as complete.

        InputError where an input is no longer what it was when it was added: the digests would be of other bytes than were used."""
        outputs = self.digest(directory, leave_out=remove)
        require_unchanged(self._states)
        manifest = Manifest(
            qtk_version=qtk.__version__,
            kind=self.kind,
            command=typed_command(),
            options=publishable(self.options),
            inputs=[
                self._input(role, path, files, Path(os.path.abspath(final)), self._digests)
                for role, path, files in self._inputs
            ],
            outputs={str(p.relative_to(directory)): self._digests[p] for p in outputs},
            packages=package_versions(*_PACKAGES),
            machine=machine().as_dict(),
            started=self._started.isoformat(timespec="seconds"),
            ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            peak_memory_bytes=peak_memory_bytes,
            notes=publishable(self.notes),
            warnings=publishable(warnings_since(self._warned)),
        )
        text = manifest.model_dump_json(indent=2) + "\n"
        if before is not None:
            before(manifest, text)
        (directory / PENDING_NAME).write_text(text, encoding="utf-8")
        _settle(directory, remove)
        return manifest

    @staticmethod
    def _input(
        role: str, path: Path, files: list[Path], final: Path, digests: Mapping[Path, FileDigest]
    ) -> InputRecord:
        root = path if path.is_dir() else path.parent
        own = root / MANIFEST_NAME
        return InputRecord(
            role=role,
            path=recorded_path(path, final),
            files={os.path.relpath(f, root): digests[f].sha256 for f in files},
            manifest_sha256=file_digest(own).sha256 if path.is_dir() and own.is_file() else None,
        )


def settle_pending(directory: Path) -> None:
    """Completes a directory whose command was killed between writing its manifest and giving it its name: what the manifest does not
    record served to make the outputs, and goes."""
    pending = directory / PENDING_NAME
    try:
        outputs = read_model(pending, Manifest, "cannot be read as a manifest").outputs
    except (FileNotFoundError, InputError):  # there is none, or it was being written
        pending.unlink(missing_ok=True)
        return
    kept = {directory / name for name in (*outputs, CARD_NAME, PENDING_NAME, SUMS_NAME, SIGNATURE_NAME)}
    kept |= {parent for path in kept for parent in path.parents}
    _settle(directory, [path for path in sorted(directory.rglob("*")) if path not in kept])


def _settle(directory: Path, remove: Iterable[Path]) -> None:
    for path in remove:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    os.replace(directory / PENDING_NAME, directory / MANIFEST_NAME)


def output_files(directory: Path) -> list[Path]:
    """Every file below `directory`, sorted, except the manifest itself, a bundle's sums, which hold the manifest's, and the model
    card: that is there to be edited."""
    left_out = [directory / name for name in (MANIFEST_NAME, PENDING_NAME, CARD_NAME, SUMS_NAME, SIGNATURE_NAME)]
    return sorted(p for p in directory.rglob("*") if p.is_file() and p not in left_out)


def entries_below(directory: Path) -> list[str]:
    """The names of what a manifest should account for, sorted: `output_files`, and what qtk never writes: links to directories and
    links that lead nowhere, pipes, empty directories (with a slash)."""
    found = [str(path.relative_to(directory)) for path in output_files(directory)]
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found += [] if path.is_file() else [name]
        elif path.is_dir():
            found += [] if any(path.iterdir()) else [f"{name}/"]
        elif not path.is_file():
            found.append(name)
    return sorted(found)


def file_digest(path: Path, on_block: Callable[[], object] | None = None) -> FileDigest:
    """sha256 and size of a file. on_block: called for each MiB that was read."""
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(BLOCK))
    try:
        with open(path, "rb", buffering=0) as stream:
            while count := stream.readinto(block):
                digest.update(block[:count])
                size += count
                if on_block is not None:
                    on_block()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return FileDigest(sha256=digest.hexdigest(), bytes=size)


def digest_files(
    paths: Sequence[Path], *, threads: int | None = None, progress: Progress | None = None
) -> dict[Path, FileDigest]:
    """The digests of files, several at once, because sha256 keeps one core busy and releases Python's lock. threads: None for
    OMP_NUM_THREADS, else every usable core. progress: advanced by the MiB that were read."""
    with ThreadPoolExecutor(threads_for(threads)) as pool:
        told = None if progress is None else progress.advance
        return dict(zip(paths, pool.map(lambda path: file_digest(path, told), paths), strict=True))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory. InputError when it is missing or cannot be parsed."""
    path = directory / MANIFEST_NAME
    try:
        return read_model(path, Manifest, "cannot be read as a manifest")
    except FileNotFoundError:
        raise InputError(f"{directory} has no {MANIFEST_NAME}: it was not written by qtk, or is incomplete.") from None


def made_in(folder: Path) -> list[Path]:
    """The directories right below `folder` that qtk wrote, sorted; those of unfinished work have no manifest yet."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))


Status = Literal["ok", "changed", "missing", "unrecorded", "input absent", "not carried"]


class Finding(BaseModel):
    """One line of `qtk verify`: a file (or input) and its state. "not carried": a part of the chain that a bundle names, but does
    not hold."""

    model_config = ConfigDict(frozen=True)
    directory: str
    file: str
    status: Status

    @property
    def bad(self) -> bool:
        return self.status in ("changed", "missing", "unrecorded")


def verify_chain(*directories: Path, known: Mapping[Path, FileDigest] | None = None) -> list[Finding]:
    """Digests the directories' files and those of every input that can be found, back to the first input; each file once.

    An input that is not on this machine is listed as "input absent", which does not count as a failure. known: digests of
    files that were read just now, by their absolute paths. InputError when one of `directories` has no manifest.
    """
    walk = _Walk()
    for directory in directories:
        if not (directory / MANIFEST_NAME).is_file():
            read_manifest(directory)  # says that there is none
        walk.visit(directory.resolve())
    return settle(walk.expectations, known)


@dataclass(frozen=True)
class Expectation:
    """A file and what it should be: its sha256, or, where that is settled already, what is to be found."""

    directory: Path
    file: str
    sha256: str = ""
    status: Status | None = None


def settle(expectations: Sequence[Expectation], known: Mapping[Path, FileDigest] | None = None) -> list[Finding]:
    """Digests the files, each once, and holds them against what is expected; findings in the order of the expectations."""
    digests = dict(known or {})
    asked = (item.directory / item.file for item in expectations if item.status is None)
    files = [path for path in dict.fromkeys(asked) if path not in digests and path.is_file()]
    with Progress("verify", sum(-(-path.stat().st_size // BLOCK) for path in files), "MiB") as progress:
        digests |= digest_files(files, progress=progress)

    def found(item: Expectation) -> Status:
        digest = digests.get(item.directory / item.file)
        if item.status is not None or digest is None:
            return item.status or "missing"
        return "ok" if digest.sha256 == item.sha256 else "changed"

    findings = (Finding(directory=str(it.directory), file=it.file, status=found(it)) for it in expectations)
    return list(dict.fromkeys(findings))


def _exists(path: Path) -> bool:
    """Whether there is something at a path that a manifest names, which may be longer than a path can be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Walk:
    """A walk along the chain, which reads manifests only: what is expected of each file, and the directories visited."""

    def __init__(self) -> None:
        self.expectations: list[Expectation] = []
        self._seen: set[Path] = set()

    def visit(self, start: Path) -> None:
        """Walks from a directory with a manifest back to its first inputs."""
        places = [start]
        while places:
            place = places.pop()
            if place not in self._seen:
                self._seen.add(place)
                places += reversed(self._expect_of(place))

    def _expect_of(self, place: Path) -> list[Path]:
        """Notes what is expected of a directory and of its inputs; returns those inputs that have a manifest themselves."""
        try:
            manifest = read_manifest(place)
        except InputError:  # it was there a moment ago: it is damaged, which is a finding like any other
            self.expectations.append(Expectation(place, MANIFEST_NAME, status="changed"))
            return []
        self.expectations += [Expectation(place, name, digest.sha256) for name, digest in manifest.outputs.items()]
        unrecorded = [name for name in entries_below(place) if name not in manifest.outputs]
        self.expectations += [Expectation(place, name, status="unrecorded") for name in unrecorded]
        sources = ((found_path(record.path, place), record) for record in manifest.inputs)
        return [root for source, record in sources for root in self._expect_input(source, record)]

    def _expect_input(self, source: Path, record: InputRecord) -> list[Path]:
        if not _exists(source):
            self.expectations.append(Expectation(source, f"({record.role})", status="input absent"))
            return []
        root = (source if source.is_dir() else source.parent).resolve()
        self.expectations += [Expectation(root, name, sha256) for name, sha256 in record.files.items()]
        if record.manifest_sha256 is None:
            return []
        # Expected by every directory that read this input: two of them may have read different states of it.
        self.expectations.append(Expectation(root, MANIFEST_NAME, record.manifest_sha256))
        return [root] if (root / MANIFEST_NAME).is_file() else []


def canonical_digest(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form. It decides whether a stage is up to date or may be resumed."""
    text = json.dumps(redact_tree(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
