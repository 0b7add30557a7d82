"""Publishes a bundle: what would be done, whether it may be done, and doing it.

A bundle is published when every file is what it was, none of them holds a secret or a place of this machine, its gates passed,
and nothing else is where it would go.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from qtk.checkpoint.manifest import SIGNATURE_NAME, SUMS_NAME, file_digest, read_manifest
from qtk.checkpoint.sums import of_a_hub, read_sums
from qtk.errors import GateFailed, InputError, listing
from qtk.release.bundle_check import verify_bundle
from qtk.release.bundle_record import BundleRecord, GateVerdict, is_bundle, record_of
from qtk.release.destinations import Destination, FileStatus, OwnFile, RemoteState, Wishes
from qtk.release.leaks import leaks


class PublishOptions(BaseModel):
    """Whether and how to publish."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    yes: bool = Field(False, description="Upload; without this nothing is changed anywhere.")
    private: bool = Field(False, description="Make a new repository private; one that is public is refused.")
    revision: str | None = Field(None, description="Branch to publish on, which is made where it is not there.")
    despite_gate: bool = Field(False, description="Publish although gates failed or none was judged; the card says so.")
    replace: bool = Field(
        False,
        description="Publish although other content is there: files of the same name are replaced, all others stay.",
    )


class PlannedFile(BaseModel):
    """A file of the bundle and how it stands to what is there."""

    model_config = ConfigDict(frozen=True)
    file: str
    bytes: int
    status: FileStatus


class PublishReport(BaseModel):
    """What would be done, or was. others: files there that the bundle does not have. refused: why it is not done, empty when it
    may be. url: where it is to be seen, once it was done."""

    model_config = ConfigDict(frozen=True)
    bundle: str
    target: str
    exists: bool
    gate: GateVerdict
    files: tuple[PlannedFile, ...]
    others: tuple[str, ...]
    refused: tuple[str, ...]
    published: bool = False
    url: str = ""

    @property
    def to_send(self) -> list[PlannedFile]:
        """The files that are not there as they are here."""
        return [file for file in self.files if file.status != "same"]


def destination(target: str, wishes: Wishes) -> Destination:
    """The place that `target` names. InputError for an address that is none of those known."""
    scheme, separator, place = target.partition("://")
    if not separator or scheme not in _SCHEMES or not place:
        known = ", ".join(f"{name}://{form}" for name, (form, _) in _SCHEMES.items())
        raise InputError(f"{target!r} is not a place to publish at. Give one of: {known}.")
    return _SCHEMES[scheme][1](place, wishes)


def publish_at(bundle: Path, target: str, options: PublishOptions) -> PublishReport:
    """As `publish`, at the place that `target` names."""
    record = _record(bundle)
    message = f"Published by qtk: {record.name}"
    return publish(
        bundle, destination(target, Wishes(options.private, options.revision, message, record.licence)), options
    )


def publish(bundle: Path, place: Destination, options: PublishOptions) -> PublishReport:
    """Says what there is to do at `place`, and does it where `options.yes` and nothing speaks against it (`refused`).

    GateFailed for a bundle that does not verify or that holds a secret; InputError for what is not a bundle; errors of the
    place as of `Destination`.
    """
    record = _record(bundle)
    files = _own_files(bundle)
    before = place.state(bundle)
    planned = [PlannedFile(file=f.name, bytes=f.bytes, status=f.status(before.files.get(f.name))) for f in files]
    names = {file.name for file in files}
    others = tuple(name for name in sorted(before.files) if name not in names and not of_a_hub(Path(name)))
    report = PublishReport(
        bundle=str(bundle),
        target=place.address,
        exists=before.exists,
        gate=record.gate,
        files=tuple(planned),
        others=others,
        refused=tuple(_reasons(record, before, planned, others, options)),
    )
    if not options.yes or report.refused:
        return report
    wanted = {file.file for file in report.to_send}
    url = place.send(bundle, [file for file in files if file.name in wanted], before) if wanted else place.address
    return report.model_copy(update={"published": True, "url": url})


def _record(bundle: Path) -> BundleRecord:
    if not is_bundle(bundle):
        raise InputError(f"{bundle} is not a bundle. `qtk bundle RUN -o DIR` makes one.")
    return record_of(read_manifest(bundle), bundle)


def _own_files(bundle: Path) -> list[OwnFile]:
    """The bundle's files. GateFailed unless each is what it was and none holds a secret."""
    changed = [finding for finding in verify_bundle(bundle) if finding.bad]
    if changed:
        raise GateFailed(
            f"{bundle} is not what it was when it was bundled, so it is not published:\n"
            + listing(f"{finding.status}: {finding.file}" for finding in changed)
        )
    sums = read_sums(bundle)
    sums |= {
        name: file_digest(bundle / name).sha256 for name in (SUMS_NAME, SIGNATURE_NAME) if (bundle / name).is_file()
    }
    if found := leaks(bundle, sorted(sums)):
        raise GateFailed(
            f"{bundle} is not published, because it would give away:\n{listing(found)}\n"
            "Take that out of what the bundle was made from, and bundle again."
        )
    return [
        OwnFile(name, bundle / name, (bundle / name).stat().st_size, sha256) for name, sha256 in sorted(sums.items())
    ]


def _reasons(
    record: BundleRecord,
    before: RemoteState,
    planned: list[PlannedFile],
    others: tuple[str, ...],
    options: PublishOptions,
) -> list[str]:
    """What speaks against publishing."""
    reasons = []
    if record.gate != "passed" and not options.despite_gate:
        why = (
            "its gates failed"
            if record.gate == "failed"
            else "no gate was judged on it (`qtk gate RUN`, then bundle again)"
        )
        reasons.append(f"{why}; --despite-gate publishes it all the same")
    other = [file.file for file in planned if file.status == "differs"]
    if (other or others) and not options.replace:
        differs = f"{len(other)} of its files differ there" if other else ""
        more = f"{len(others)} other files are there" if others else ""
        told = " and ".join(filter(None, (differs, more)))
        reasons.append(
            f"other content is there already: {told}; --replace replaces files of the same name and leaves the others"
        )
    if options.private and before.exists and before.public:
        reasons.append("--private: the repository is public; make it private on its page first")
    return reasons


def _hub(place: str, wishes: Wishes) -> Destination:
    from qtk.release.publish_hub import HubRepository

    return HubRepository(place, wishes)


def _modelscope(place: str, wishes: Wishes) -> Destination:
    from qtk.release.publish_modelscope import ModelScopeRepository

    return ModelScopeRepository(place, wishes)


def _folder(place: str, wishes: Wishes) -> Destination:
    from qtk.release.publish_folder import PublishedFolder

    return PublishedFolder(place, wishes)


_SCHEMES: dict[str, tuple[str, Callable[[str, Wishes], Destination]]] = {
    "hf": ("ORGANISATION/NAME", _hub),
    "modelscope": ("ORGANISATION/NAME", _modelscope),
    "file": ("DIRECTORY", _folder),
}
