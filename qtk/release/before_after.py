"""Which of two accuracy results is before and which is after: told by what the manifests say of their models, never by times.

A result is before another where the model that it measured was not quantized and the other's was made from that very model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtk.bench.accuracy.results.comparison import Comparison, compare
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import CompareOptions
from qtk.checkpoint.json_file import read_json
from qtk.checkpoint.manifest import (
    MANIFEST_NAME,
    InputRecord,
    Manifest,
    canonical_digest,
    file_digest,
    read_manifest,
)
from qtk.engines.description import is_engine, read_description
from qtk.errors import InputError

# The role of the input from which a directory's model was made, by the kind of the directory.
_SOURCE_ROLES = ("model", "engine", "prepared", "base")


@dataclass(frozen=True)
class Measured:
    """An accuracy result, the directory that it stands in, and that directory's manifest."""

    path: Path
    manifest: Manifest
    result: AccuracyResult

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Pair:
    """Two results side by side, called by their directories."""

    before: str
    after: str
    comparison: Comparison


@dataclass(frozen=True)
class Order:
    """The pairs, and a sentence on each result that was left out although another one scored the same tasks."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """What a model is. quantized: None where its directory cannot be read any more. checkpoint: the digest of the model, or of
    the one that the engine was built from; None where nothing says. sources: the digests of everything that it was made
    from, nearest first, itself included."""

    quantized: bool | None
    checkpoint: str | None
    sources: tuple[str, ...]


def ordered_pairs(results: Sequence[Measured], given: Sequence[Pair] = (), before: str | None = None) -> Order:
    """The pairs that were given, and every other pair of results of the same tasks of which one is before the other.

    before: the name of the directory that all others are compared with, whatever they are. InputError for a name that none
    of the results has.
    """
    done = {frozenset((pair.before, pair.after)) for pair in given}
    if before is not None:
        first = [measured for measured in results if measured.name == before]
        if not first:
            names = ", ".join(measured.name for measured in results) or "none"
            raise InputError(f"--before {before}: there is no accuracy result of that name. There are: {names}.")
        pairs = [pair for other in results if other is not first[0] and (pair := _pair(first[0], other))]
        return Order((*given, *(pair for pair in pairs if {pair.before, pair.after} not in done)), ())
    lineages = {measured.path: lineage_of(measured.path, measured.manifest) for measured in results}
    found = [pair for after in results if (pair := _nearest(after, results, lineages))]
    chosen = [*given, *(pair for pair in found if {pair.before, pair.after} not in done)]
    named = {name for pair in chosen for name in (pair.before, pair.after)}
    lonely = [measured for measured in results if measured.name not in named]
    sentences: dict[frozenset[str], str] = {}
    for measured in lonely:
        other = next((other for other in results if other is not measured and _pair(other, measured)), None)
        if other is not None:
            sentences.setdefault(frozenset((measured.name, other.name)), _left_out(measured, other, lineages))
    return Order(tuple(chosen), tuple(sentences.values()))


def _nearest(after: Measured, results: Sequence[Measured], lineages: dict[Path, Lineage]) -> Pair | None:
    """The result beside that of its nearest float ancestor; None where it has none, or is not quantized."""
    own = lineages[after.path]
    if not own.quantized:
        return None
    ancestors = [
        (own.sources.index(other.checkpoint), measured)
        for measured in results
        if (other := lineages[measured.path]).quantized is False and other.checkpoint in own.sources
    ]
    for _, ancestor in sorted(ancestors, key=lambda pair: pair[0]):
        if pair := _pair(ancestor, after):
            return pair
    return None


def _pair(before: Measured, after: Measured) -> Pair | None:
    """The two side by side; None where they were not scored on the same terms: there is nothing to compare."""
    with contextlib.suppress(InputError):
        comparison = compare(before.result, after.result, CompareOptions(baseline="none"))
        return Pair(before.name, after.name, comparison)
    return None


def _left_out(measured: Measured, other: Measured, lineages: dict[Path, Lineage]) -> str:
    return (
        f"{measured.name} ({_what(measured, lineages)}) and {other.name} ({_what(other, lineages)}) scored the same tasks, but "
        f"nothing says which of them is before: `qtk report` with --before {measured.name} or --before {other.name} decides"
    )


def _what(measured: Measured, lineages: dict[Path, Lineage]) -> str:
    if measured.result.model is None:
        return "stored answers, of which no model is known"
    kinds = {True: "a quantized model", False: "a float model", None: "a model that is gone, or was made anew since"}
    return kinds[lineages[measured.path].quantized]


def lineage_of(path: Path, manifest: Manifest) -> Lineage:
    """The lineage of the model that a result in `path` was measured on, from the manifests along its chain."""
    nodes = list(_sources(path, manifest))
    if not nodes:
        return Lineage(None, None, ())
    sources = tuple(digest for digest, _ in nodes)
    measured = nodes[0][1]
    if measured is None:
        return Lineage(None, None, sources)
    checkpoints = [digest for digest, directory in nodes if directory is None or not is_engine(directory)]
    return Lineage(_is_quantized(measured), next(iter(checkpoints), None), sources)


def _sources(path: Path, manifest: Manifest) -> Iterator[tuple[str, Path | None]]:
    """(digest, directory) of the model and of each one that it was made from; the directory is None where it is absent, or
    holds something else by now. The digest is that of the manifest, or of the weights of a model that has none."""
    record = next((r for role in _SOURCE_ROLES for r in manifest.inputs if r.role == role), None)
    if record is None:
        return
    directory = Path(os.path.normpath(path / record.path))
    present = directory.is_dir() and _is_still(directory, record)
    yield record.manifest_sha256 or _weights_digest(record), directory if present else None
    if present and record.manifest_sha256 is not None:
        yield from _sources(directory, read_manifest(directory))


def _weights_digest(record: InputRecord) -> str:
    """Of the weights alone: which of the files beside them are recorded depends on the command."""
    weights = {name: digest for name, digest in record.files.items() if name.endswith(".safetensors")}
    return canonical_digest(weights or record.files)


def _is_still(directory: Path, record: InputRecord) -> bool:
    """Whether a directory is the one that was read: by its manifest, or where it has none by the names of its files."""
    own = directory / MANIFEST_NAME
    if record.manifest_sha256 is None:
        return all((directory / name).is_file() for name in record.files)
    return own.is_file() and file_digest(own).sha256 == record.manifest_sha256


def _is_quantized(directory: Path) -> bool:
    if is_engine(directory):
        return read_description(directory).quantization is not None
    try:
        return "quantization_config" in read_json(directory / "config.json")
    except (OSError, InputError):
        return False
