"""What a bundle says of itself in its manifest, and where its parts lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from qtk.errors import InputError

BUNDLE = "bundle"
CHAIN = "chain"  # the folder of the chain's manifests
GateVerdict = Literal["passed", "failed", "not judged"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class BundlePart(_Frozen):
    """A directory of the chain. kind: of its manifest, which lies in chain/NAME; manifest_sha256: of that file. place: where in the
    bundle those of its files lie that it carries; "." for the artefact's."""

    kind: str
    manifest_sha256: str
    place: str


class BundleRecord(_Frozen):
    """The notes of a bundle's manifest. name: what the bundle is called; it says "unbuilt" of an engine that is only prepared.
    artefact: the part that is released. start: the commands that start it, in the bundle's directory. parts: by name, in the
    order of the chain. licence: as the base's card names it; empty where nothing does."""

    name: str
    artefact: str
    runtime: str
    built: bool
    start: tuple[str, ...]
    gate: GateVerdict
    base_model: tuple[str, ...] = ()
    licence: str = ""
    parts: dict[str, BundlePart]


def is_bundle(directory: Path) -> bool:
    """Whether a directory's manifest is that of a bundle; not where it is damaged, which `verify_chain` finds."""
    try:
        return read_manifest(directory).kind == BUNDLE
    except InputError:
        return False


def record_of(manifest: Manifest, directory: Path) -> BundleRecord:
    """The record in a bundle's manifest. InputError where there is none."""
    try:
        return BundleRecord.model_validate(manifest.notes)
    except ValidationError as error:
        raise InputError(f"{directory / MANIFEST_NAME} is not the manifest of a bundle: {error}") from None
