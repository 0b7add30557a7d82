"""Finds the questions of a set: in the user's folder, or on the Hugging Face hub where that is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.choices.rows import Row, as_rows, read_set, subject_files
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet, HubSource
from qtk.bench.accuracy.suites.suites import Suite, find_data, missing_data
from qtk.checkpoint.manifest import canonical_digest, file_digest
from qtk.errors import InputError, MachineError


@dataclass(frozen=True)
class LoadedSet:
    """The questions to ask, where they came from, the files of theirs (none for the hub), and a digest of the source."""

    rows: list[Row]
    source: Path | None
    name: str
    files: list[Path]
    sha256: str


def load_set(suite: Suite, name: str, data: Path | None, limit: int | None, *, hub: bool) -> LoadedSet:
    """The questions of a set, at most `limit`. MissingData where they are not found."""
    about = suite.sets[name]
    path, looked = find_data(about.file, data)
    if path is not None:
        rows = read_set(name, about, path)
        files = [path] if path.is_file() else _files(about, path)
        digests = {str(file.relative_to(path.parent)): file_digest(file).sha256 for file in files}
        sha256 = file_digest(path).sha256 if path.is_file() else canonical_digest(digests)
        found = LoadedSet(rows, path, path.name if path.is_file() else about.file, files, sha256)
    elif hub and about.hub is not None:
        found = _from_hub(name, about, about.hub)
    else:
        where = "" if about.hub is None else f" Or take it from the hub ({about.hub.id}) with --hub."
        error = missing_data(suite, about.file, looked)
        raise type(error)(f"{about.title}: {error}{where}")
    if not found.rows:
        raise InputError(f"{found.name} holds no question of {about.title}.")
    return LoadedSet(_limited(found.rows, limit), found.source, found.name, found.files, found.sha256)


def _files(about: ChoiceSet, folder: Path) -> list[Path]:
    files = list(subject_files(folder).values())
    if about.shots_file is not None:
        files += subject_files(folder.parent / Path(about.shots_file).name).values()
    return files


def _limited(rows: list[Row], limit: int | None) -> list[Row]:
    """A sample that is the same everywhere and has nothing to do with the order of the data, which is often sorted."""
    if limit is None or limit >= len(rows):
        return rows
    kept = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())[:limit]
    wanted = {row.id for row in kept}
    return [row for row in rows if row.id in wanted]


def _from_hub(name: str, about: ChoiceSet, hub: HubSource) -> LoadedSet:
    try:
        import datasets
    except ImportError:
        raise MachineError("--hub needs the package datasets: pip install 'qtk[eval]'.") from None
    rows: list[Row] = []
    for subject in hub.subjects or ("",):
        shots = []
        if about.shots and hub.shots_split is not None:
            shots = as_rows(name, about, _hub_rows(datasets, hub, subject, hub.shots_split), hub.id, subject)
        rows += as_rows(name, about, _hub_rows(datasets, hub, subject, hub.split), hub.id, subject, shots)
    digest = canonical_digest([[row.id, row.fields, list(row.options), row.gold] for row in rows])
    return LoadedSet(rows, None, f"{hub.id} {hub.split}", [], digest)


def _hub_rows(datasets: Any, hub: HubSource, subject: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows with the names of classes instead of their numbers, as the published files have them.

    Since its version 4 the library runs no code that a data set brings along.
    """
    try:
        found = datasets.load_dataset(hub.id, subject or hub.name, split=split)
    except Exception as error:  # the library and what it calls raise many kinds
        offline = " (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set)" if _offline() else ""
        raise InputError(f"{hub.id} cannot be loaded from the hub{offline}: {error}") from None
    classes: Mapping[str, Any] = {
        key: feature for key, feature in found.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    for row in found:
        yield {**row, **{key: feature.int2str(row[key]) for key, feature in classes.items() if row[key] >= 0}}


def _offline() -> bool:
    return any(os.environ.get(name, "") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
