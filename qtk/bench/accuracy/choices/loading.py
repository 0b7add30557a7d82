"""Finds the questions of a set in the user's folder, or on the Hugging Face hub with --hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.choices.rows import QuestionRow, as_rows, read_set, subject_files
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet, HubSource
from qtk.bench.accuracy.suites.suites import Suite, find_data, missing_data
from qtk.checkpoint.hub import out_of_reach
from qtk.checkpoint.manifest import canonical_digest, file_digest
from qtk.errors import InputError, MachineError
from qtk.install_hints import missing_package


@dataclass(frozen=True)
class LoadedSet:
    """The questions to ask. name: of the file or the hub's data set. files: none for the hub. sha256: of the source. whole: how
    many questions the source holds."""

    rows: list[QuestionRow]
    name: str
    files: list[Path]
    sha256: str
    whole: int = 0


def load_set(suite: Suite, name: str, data: Path | None, limit: int | None, *, hub: bool) -> LoadedSet:
    """The questions of a set, at most `limit`. MissingData when they are not found."""
    choice_set = suite.sets[name]
    path, looked = find_data(choice_set.file, data)
    if path is not None:
        rows = read_set(name, choice_set, path)
        files = [path] if path.is_file() else _files(choice_set, path)
        digests = {str(file.relative_to(path.parent)): file_digest(file).sha256 for file in files}
        sha256 = file_digest(path).sha256 if path.is_file() else canonical_digest(digests)
        loaded = LoadedSet(rows, path.name if path.is_file() else choice_set.file, files, sha256)
    elif hub and choice_set.hub is not None:
        loaded = _from_hub(name, choice_set, choice_set.hub)
    else:
        where = "" if choice_set.hub is None else f" Or take it from the hub ({choice_set.hub.id}) with --hub."
        error = missing_data(suite, choice_set.file, looked)
        raise type(error)(f"{choice_set.title}: {error}{where}")
    if not loaded.rows:
        raise InputError(f"{loaded.name} does not hold any question of {choice_set.title}.")
    return replace(loaded, rows=_limited(loaded.rows, limit), whole=len(loaded.rows))


def _files(choice_set: ChoiceSet, folder: Path) -> list[Path]:
    files = list(subject_files(folder).values())
    if choice_set.shots_file is not None:
        files += subject_files(folder.parent / Path(choice_set.shots_file).name).values()
    return files


def _limited(rows: list[QuestionRow], limit: int | None) -> list[QuestionRow]:
    """A sample that is the same on every machine and does not depend on the order of the data, which is often sorted."""
    if limit is None or limit >= len(rows):
        return rows
    kept = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())[:limit]
    kept_ids = {row.id for row in kept}
    return [row for row in rows if row.id in kept_ids]


def _from_hub(name: str, choice_set: ChoiceSet, hub: HubSource) -> LoadedSet:
    try:
        import datasets
    except ImportError:
        raise missing_package("--hub", "datasets", "eval") from None
    rows: list[QuestionRow] = []
    for subject in hub.subjects or ("",):
        shots = []
        if choice_set.shots and hub.shots_split is not None:
            shots = as_rows(name, choice_set, _hub_rows(datasets, hub, subject, hub.shots_split), hub.id, subject)
        rows += as_rows(name, choice_set, _hub_rows(datasets, hub, subject, hub.split), hub.id, subject, shots)
    digest = canonical_digest([[row.id, row.fields, list(row.options), row.gold] for row in rows])
    return LoadedSet(rows, f"{hub.id} {hub.split}", [], digest)


def _hub_rows(datasets: Any, hub: HubSource, subject: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows, with the names of classes instead of their numbers, as in the published files.

    Since version 4 the library does not run code that comes with a data set.
    """
    try:
        rows = datasets.load_dataset(hub.id, subject or hub.name, split=split)
    except Exception as error:  # the library and what it calls raise many kinds
        offline = " (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set)" if _offline() else ""
        if offline or out_of_reach(error):
            raise MachineError(f"{hub.id} cannot be loaded from the hub, which is out of reach{offline}.") from None
        raise InputError(f"{hub.id} cannot be loaded from the hub: {error}") from None
    classes: Mapping[str, Any] = {
        key: feature for key, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    for row in rows:
        yield {**row, **{key: feature.int2str(row[key]) for key, feature in classes.items() if row[key] >= 0}}


def _offline() -> bool:
    return any(os.environ.get(name, "") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
