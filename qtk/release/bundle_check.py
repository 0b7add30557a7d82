"""Whether a bundle is what it was when it was written: by its list of sums, its manifest, and the manifests of its chain.

Nothing outside the bundle is looked at, so that it verifies the same on every machine. What the chain names and the bundle
does not hold, such as the float model, is "not carried".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qtk.checkpoint.manifest import (
    MANIFEST_NAME,
    SUMS_NAME,
    Expectation,
    Finding,
    InputRecord,
    Manifest,
    file_digest,
    read_manifest,
    settle,
)
from qtk.checkpoint.sums import read_sums, summed_files
from qtk.errors import InputError
from qtk.release.bundle_record import CHAIN, BundlePart, record_of
from qtk.release.signing import require_signature
from qtk.wording import counted


def verify_bundle(directory: Path, key: Path | None = None) -> list[Finding]:
    """Every file's finding, each file read once, and the parts that are not carried.

    key: a public key; the signature of the list of sums is checked with it first. GateFailed where it does not verify, or the
    list is no list.
    """
    directory = directory.resolve()
    sums = read_sums(directory)
    if key is not None:
        require_signature(directory, key)
    unlisted = [str(path.relative_to(directory)) for path in summed_files(directory)]
    expected = [Expectation(directory, name, sha256) for name, sha256 in sums.items()]
    expected += [Expectation(directory, name, status="unrecorded") for name in unlisted if name not in sums]
    findings = settle(expected)
    if any(finding.bad for finding in findings):
        return [_blamed(directory, finding) for finding in findings]
    manifest = read_manifest(directory)  # as it was listed, so it can be read
    deeper = [*_contradictions(directory, manifest, sums), *_chain(directory, manifest, sums)]
    changed = {finding.file for finding in deeper if finding.bad}
    return list(dict.fromkeys([*(finding for finding in findings if finding.file not in changed), *deeper]))


def _blamed(directory: Path, finding: Finding) -> Finding:
    """The finding; where the manifest says that the file is right, it is the list of sums that was changed."""
    if finding.status != "changed" or finding.file == MANIFEST_NAME:
        return finding
    try:
        recorded = read_manifest(directory).outputs.get(finding.file)
    except InputError:
        return finding
    if recorded is None or file_digest(directory / finding.file).sha256 != recorded.sha256:
        return finding
    return Finding(directory=finding.directory, file=f"{SUMS_NAME} (the line of {finding.file})", status="changed")


def _contradictions(directory: Path, manifest: Manifest, sums: dict[str, str]) -> Iterator[Finding]:
    """Files of which the list of sums says something else than the manifest."""
    for name, digest in manifest.outputs.items():
        if sums.get(name) != digest.sha256:
            yield Finding(directory=str(directory), file=name, status="changed" if name in sums else "missing")
    if MANIFEST_NAME not in sums:
        yield Finding(directory=str(directory), file=f"{MANIFEST_NAME} in {SUMS_NAME}", status="missing")


def _chain(directory: Path, manifest: Manifest, sums: dict[str, str]) -> Iterator[Finding]:
    record = record_of(manifest, directory)
    carried = {part.manifest_sha256 for part in record.parts.values()}
    for name, part in record.parts.items():
        own = PurePosixPath(CHAIN, name, MANIFEST_NAME)
        if sums.get(str(own)) != part.manifest_sha256:
            yield Finding(directory=str(directory), file=str(own), status="changed" if str(own) in sums else "missing")
            continue
        link = read_manifest(directory / CHAIN / name)
        yield from _files_of(directory, name, part, link, sums)
        for source in link.inputs:
            if source.manifest_sha256 not in carried:
                yield _absent(directory / CHAIN / name, source)


def _files_of(directory: Path, name: str, part: BundlePart, link: Manifest, sums: dict[str, str]) -> Iterator[Finding]:
    """The files of a part that lie in the bundle, held against the part's own manifest; and how many do not."""
    left_out = 0
    for file, digest in link.outputs.items():
        place = str(PurePosixPath(part.place, file))
        if place not in sums:
            left_out += 1
        elif sums[place] != digest.sha256:
            yield Finding(directory=str(directory), file=place, status="changed")
    if left_out:
        what = f"({part.kind}: {counted(left_out, 'file')})"
        yield Finding(directory=str(directory / CHAIN / name), file=what, status="not carried")


def _absent(place: Path, source: InputRecord) -> Finding:
    return Finding(directory=str(place), file=f"({source.role}: {source.path})", status="not carried")
