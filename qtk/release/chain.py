"""What a directory was made from, by digest: the path in a manifest says where an input lay, not what lies there now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qtk.checkpoint.manifest import MANIFEST_NAME, InputRecord, Manifest, file_digest


def source_names(directory: Path, manifest: Manifest, known: Mapping[str, str]) -> list[str]:
    """The name of each input of `directory`, with a remark where something else lies at its path today.

    known: sha256 of a manifest -> the name of the directory that holds it.
    """
    return [_name(directory, record, known) for record in manifest.inputs]


def _name(directory: Path, record: InputRecord, known: Mapping[str, str]) -> str:
    if record.manifest_sha256 is None:
        return record.path
    if record.manifest_sha256 in known:
        return known[record.manifest_sha256]
    there = Path(os.path.normpath(directory / record.path)) / MANIFEST_NAME
    if not there.is_file():
        return f"{record.path} (not on this machine)"
    if file_digest(there).sha256 != record.manifest_sha256:
        return f"{record.path} as it was then (another directory lies there now)"
    return record.path
