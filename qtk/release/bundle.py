"""Makes a bundle: the directory that is released, complete in itself, with the proof of where it comes from.

The artefact's files lie at the top, as the runtime and the hubs want them. Beside them: README.md (the card), SHA256SUMS, the
bill of materials, compose.yaml, the recipe, report/ and gate/, and in chain/ the manifest of every step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from qtk.bench.results import RESULT_NAME
from qtk.checkpoint.atomic import write_atomic
from qtk.checkpoint.begun import BegunWork, UnfinishedWork
from qtk.checkpoint.card import BASE_CARD_NAME, KEPT, card_metadata, hub_ids
from qtk.checkpoint.copying import copy_digesting, share_file
from qtk.checkpoint.hub_cache import hub_identity
from qtk.checkpoint.manifest import (
    BLOCK,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUMS_NAME,
    FileDigest,
    Manifest,
    ManifestRecorder,
    digest_files,
    verify_chain,
)
from qtk.checkpoint.reader import CARD_NAME, LICENCE_PATTERNS
from qtk.checkpoint.staging import Resumption, staged_directory
from qtk.checkpoint.sums import sums_text
from qtk.engines.description import is_engine, read_description
from qtk.errors import GateFailed, InputError, listing
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress, warn
from qtk.redaction import copy_redacted
from qtk.release.bundle_card import BundleCard, Origin, write_bundle_card
from qtk.release.bundle_parts import (
    ChainPart,
    ChainStart,
    artefact_of,
    chain_parts,
    chain_starts,
    lineage,
    made_in_chain,
    startable,
)
from qtk.release.bundle_record import BUNDLE, CHAIN, BundlePart, BundleRecord, GateVerdict, is_bundle
from qtk.release.gate_files import SUMMARY_NAME
from qtk.release.material import Made, gather
from qtk.release.report import REPORT_NAME
from qtk.release.sbom import SBOM_NAME, Ingredient, Materials, packages_of, require_sbom, sbom_json
from qtk.release.signing import require_signer, sign_sums
from qtk.release.starting import COMPOSE_NAME, Start, start_of

RECIPE_NAME = "recipe.yaml"
_WORK = ".bundle"  # what a stopped command leaves; removed before the directory is complete
_UNBUILT = "unbuilt"


class BundleOptions(BaseModel):
    """What is bundled, and for what."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    take: str | None = Field(
        None,
        description="The model or engine to release, by the name of its directory [default: the last quantized one].",
    )
    runtime: str | None = Field(
        None, description="The runtime that a checkpoint is started by [default: what it was made for]."
    )


@dataclass(frozen=True)
class BundleSources:
    """What a bundle is made from. directories: of the run, in the order of the chain. report, gate: their directories; recipe: its
    file; None where there is none."""

    directories: tuple[Path, ...]
    report: Path | None = None
    gate: Path | None = None
    recipe: Path | None = None


@dataclass(frozen=True)
class BundleOutput:
    """Where a bundle is written. sign: a private key, or the public half of one in an agent."""

    directory: Path
    sign: Path | None = None
    overwrite: bool = False
    resume: bool = False


class BundleReport(BaseModel):
    """What was made. shared: files that share their blocks with the run's; copied: bytes that were copied."""

    model_config = ConfigDict(frozen=True)
    bundle: str
    name: str
    artefact: str
    runtime: str
    built: bool
    gate: GateVerdict
    signed: bool
    licence: str
    start: tuple[str, ...]
    files: int
    bytes: int
    shared_files: int
    copied_bytes: int


@dataclass(frozen=True)
class _Plan:
    """A bundle before anything is written."""

    record: BundleRecord
    artefact: ChainPart
    parts: Sequence[ChainPart]
    origin: Origin
    start: Start
    carried: Mapping[str, Path]  # file in the bundle -> where it is taken from, apart from the artefact's own


def write_bundle(
    sources: BundleSources, output: BundleOutput, options: BundleOptions = BundleOptions()
) -> BundleReport:
    """Makes the bundle of `sources`.

    GateFailed, and nothing is written, when the chain does not verify: every file of it on this machine is read once.
    InputError where there is nothing to release, or the gate judged another state; MachineError for a missing package or
    program.
    """
    require_sbom()
    if output.sign is not None:
        require_signer(output.sign)
    plan = _plan(sources, output.directory, options)
    facts = {
        "run": {part.name: part.made.sha256 for part in plan.parts},
        "artefact": plan.record.artefact,
        "runtime": plan.record.runtime,
    }
    recorder = ManifestRecorder(BUNDLE, options.model_dump())
    recorder.notes |= plan.record.model_dump(mode="json")
    staged = staged_directory(
        output.directory,
        overwrite=output.overwrite,
        resumption=Resumption(output.resume, facts, unfinished_bundle),
        inputs=[part.made.path for part in plan.parts],
    )
    with PeakMemory() as memory, staged as work:
        copies = _carry_artefact(plan.artefact.made, work, facts)
        _require_chain(sources, plan, copies, work)
        recorder.know({work / name: digest for name, digest in plan.artefact.made.manifest.outputs.items()})
        _write_the_rest(plan, sources, work, signed=output.sign is not None)
        for part in plan.parts:
            recorder.add_input(part.made.manifest.kind, part.made.path, [part.made.path / MANIFEST_NAME])

        def sums(manifest: Manifest, text: str) -> None:
            _write_sums(work, manifest, text)
            if output.sign is not None:
                sign_sums(work, output.sign)

        manifest = recorder.write(work, output.directory, memory.peak_bytes, remove=[work / _WORK], before=sums)
    return _report(output, plan.record, manifest, copies)


def unfinished_bundle(work: Path) -> UnfinishedWork | None:
    """What a stopped command left in `work`; None where nothing can be continued."""
    begun, copied = BegunWork.read(work / _WORK / "begun.json"), _copied_before(work)
    return UnfinishedWork(kind=BUNDLE, begun=begun, done=len(copied)) if begun is not None and copied else None


def _plan(sources: BundleSources, out: Path, options: BundleOptions) -> _Plan:
    for path in sources.directories:
        if is_bundle(path):
            raise InputError(f"{path} is a bundle already.")
    beside = [path for path in (sources.report, sources.gate) if path is not None]
    parts = chain_parts([*sources.directories, *beside])
    artefact = artefact_of(parts, sources.directories, options.take)
    engine = read_description(artefact.made.path) if is_engine(artefact.made.path) else None
    built = engine is None or engine.built
    name = out.resolve().name if built or _UNBUILT in out.name else f"{out.resolve().name}-{_UNBUILT}"
    what = startable(artefact, name, options.runtime)
    start = start_of(what)
    places = {artefact.made.path: "."}
    places |= {path.resolve(): path.name for path in beside}
    starts = chain_starts(parts)
    origin, licences = _origin(list(lineage(artefact, parts)), starts)
    verdict = _gate_verdict(sources.gate, {part.made.sha256 for part in parts})
    record = BundleRecord(
        name=name,
        artefact=artefact.name,
        runtime=what.runtime,
        built=built,
        start=start.commands,
        gate=verdict,
        base_model=origin.base_model,
        licence=origin.licence,
        parts={
            part.name: BundlePart(
                kind=part.made.manifest.kind,
                manifest_sha256=part.made.sha256,
                place=places.get(part.made.path, f"{CHAIN}/{part.name}"),
            )
            for part in parts
        },
    )
    carried = dict(licences)
    for part in parts:
        place = PurePosixPath(record.parts[part.name].place)
        carried[f"{CHAIN}/{part.name}/{MANIFEST_NAME}"] = part.made.path / MANIFEST_NAME
        if part.made.path in places and part is not artefact:
            carried |= {str(place / file): part.made.path / file for file in part.made.manifest.outputs}
        elif RESULT_NAME in part.made.manifest.outputs:
            carried[str(place / RESULT_NAME)] = part.made.path / RESULT_NAME
    if sources.recipe is not None:
        carried[RECIPE_NAME] = sources.recipe
    own = set(artefact.made.manifest.outputs)
    return _Plan(
        record, artefact, parts, origin, start, {name: path for name, path in carried.items() if name not in own}
    )


def _gate_verdict(gate: Path | None, known: set[str]) -> GateVerdict:
    """The stored verdict. InputError where it was given on another state of the run."""
    if gate is None:
        return "not judged"
    made = made_in_chain(gate)
    other = [record.path for record in made.manifest.inputs if record.manifest_sha256 not in known]
    if other:
        raise InputError(
            f"{gate} judged another state of the run:\n{listing(dict.fromkeys(other))}\n"
            f"`qtk gate {gate.parent}` judges this one."
        )
    try:
        passed = json.loads((gate / RESULT_NAME).read_bytes())["passed"]
    except (OSError, ValueError, KeyError):
        raise InputError(f"{gate / RESULT_NAME} cannot be read as a verdict. `qtk gate` writes it anew.") from None
    return "passed" if passed else "failed"


def _origin(line: Sequence[ChainPart], starts: Sequence[ChainStart]) -> tuple[Origin, dict[str, Path]]:
    """Where the artefact comes from, by the nearest directory that says so; and the files that carry the base's licence and card,
    by their names in the bundle."""
    first = [start for start in starts if start.record.role in ("base", "model", "adapter")]
    places = [part.made.path for part in line] + [start.directory for start in first if start.directory.is_dir()]
    metadata = [card_metadata(place / CARD_NAME) for place in places]
    kept = next(({key: data[key] for key in KEPT if data.get(key)} for data in metadata if data.get("license")), {})
    named = next((ids for data in metadata if (ids := hub_ids(data.get("base_model")))), ())
    hub = (
        start.record.path.removeprefix("hf://").partition("@")[0]
        for start in first
        if start.record.path.startswith("hf://")
    )
    licences = {
        path.name: path for place in reversed(places) for pattern in LICENCE_PATTERNS for path in place.glob(pattern)
    }
    names = tuple(sorted(licences))
    card = next((place / BASE_CARD_NAME for place in places if (place / BASE_CARD_NAME).is_file()), None)
    if card is None:
        card = next((start.directory / CARD_NAME for start in first if (start.directory / CARD_NAME).is_file()), None)
    carried = licences | ({BASE_CARD_NAME: card} if card is not None else {})
    return Origin(named or tuple(dict.fromkeys(hub)), kept, names), carried


def _carry_artefact(made: Made, work: Path, facts: Mapping[str, object]) -> dict[str, FileDigest | None]:
    """Brings the artefact's files into `work`: file -> its digest where it was copied, and so read; None where it was shared."""
    before = _copied_before(work)
    (work / _WORK).mkdir(exist_ok=True)
    total = len(made.manifest.outputs)
    BegunWork.now(facts, total=total, unit="file").write(work / _WORK / "begun.json")
    copies: dict[str, FileDigest | None] = {}
    blocks = sum(-(-digest.bytes // BLOCK) for digest in made.manifest.outputs.values())
    with Progress("bundle", blocks, "MiB") as progress:
        for name in made.manifest.outputs:
            source, target = made.path / name, work / name
            if not source.is_file():
                continue  # the check of the chain names it
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in before and target.is_file() and target.stat().st_size == before[name].bytes:
                copies[name] = before[name]
                progress.advance(-(-before[name].bytes // BLOCK), name)
                continue
            target.unlink(missing_ok=True)
            if share_file(source, target):
                copies[name] = None
                progress.advance(-(-source.stat().st_size // BLOCK), name)
                continue
            copies[name] = copy_digesting(source, target, progress.advance)
            done = {key: digest.model_dump() for key, digest in copies.items() if digest is not None}
            write_atomic(work / _WORK / "copied.json", json.dumps(done))
    return copies


def _copied_before(work: Path) -> dict[str, FileDigest]:
    try:
        return {
            k: FileDigest.model_validate(v) for k, v in json.loads((work / _WORK / "copied.json").read_bytes()).items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def _require_chain(sources: BundleSources, plan: _Plan, copies: Mapping[str, FileDigest | None], work: Path) -> None:
    """GateFailed, and nothing is kept, unless the whole chain verifies. What was copied just now is not read again."""
    known = {plan.artefact.made.path / name: digest for name, digest in copies.items() if digest is not None}
    beside = [path for path in (sources.report, sources.gate) if path is not None]
    bad = [finding for finding in verify_chain(*sources.directories, *beside, known=known) if finding.bad]
    if bad:
        shutil.rmtree(work)
        raise GateFailed(
            "The chain does not verify, so nothing is bundled:\n"
            + listing(f"{finding.status}: {Path(finding.directory) / finding.file}" for finding in bad)
        )


def _write_the_rest(plan: _Plan, sources: BundleSources, work: Path, *, signed: bool) -> None:
    """Everything beside the artefact, but the manifest and the sums."""
    for name, path in plan.carried.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        if path == sources.recipe or path.name in (*plan.origin.licence_files, BASE_CARD_NAME, CARD_NAME):
            copy_redacted(path, work / name)
        else:  # a manifest has its digest
            shutil.copyfile(path, work / name)
    (work / SBOM_NAME).write_text(sbom_json(_materials(plan)), encoding="utf-8")
    files = dict(plan.start.files)
    if (compose := plan.start.compose(plan.record.name)) is not None:
        files[COMPOSE_NAME] = compose
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text, encoding="utf-8")
    if not plan.origin.licence:
        warn("The licence of the base is not named in its card, so the bundle's card cannot name it.")
    engine = read_description(plan.artefact.made.path) if is_engine(plan.artefact.made.path) else None
    gates = (work / sources.gate.name / SUMMARY_NAME) if sources.gate is not None else None
    card = BundleCard(
        record=plan.record,
        made=plan.artefact.made,
        engine=engine,
        origin=plan.origin,
        start=plan.start,
        material=gather(sources.directories),
        gates=gates.read_text(encoding="utf-8").replace("## ", "### ") if gates is not None else "",
        report=f"{sources.report.name}/{REPORT_NAME}" if sources.report is not None else "",
        recipe=RECIPE_NAME if sources.recipe is not None else "",
        signed=signed,
    )
    write_bundle_card(work, card)


def _materials(plan: _Plan) -> Materials:
    manifests = [part.made.manifest for part in plan.parts]
    line = list(lineage(plan.artefact, plan.parts))
    licence = plan.origin.licence
    ingredients = []
    for start in chain_starts(line):
        identity, _, commit = (hub_identity(start.directory) or start.record.path.removeprefix("hf://")).partition("@")
        base = start.record.role in ("base", "model")
        name = identity if commit else Path(start.record.path).name
        ingredients.append(Ingredient(start.record.role, name, commit, licence if base else "", start.record.files))
    return Materials(
        name=plan.record.name,
        version=plan.artefact.made.sha256,
        ended=plan.artefact.made.manifest.ended,
        licence=licence,
        ingredients=tuple(ingredients),
        packages=packages_of(manifest.packages for manifest in manifests),
        qtk_versions=frozenset(manifest.qtk_version for manifest in manifests),
    )


def _write_sums(work: Path, manifest: Manifest, text: str) -> None:
    """SHA256SUMS, of what the manifest lists and of what no manifest lists: the card, and the manifest itself, whose text will be
    `text`."""
    sums = {name: digest.sha256 for name, digest in manifest.outputs.items()}
    sums |= {path.name: digest.sha256 for path, digest in digest_files([work / CARD_NAME]).items()}
    (work / SIGNATURE_NAME).unlink(missing_ok=True)  # of a stopped command's list
    sums[MANIFEST_NAME] = hashlib.sha256(text.encode()).hexdigest()
    write_atomic(work / SUMS_NAME, sums_text(sums))


def _report(
    output: BundleOutput, record: BundleRecord, manifest: Manifest, copies: Mapping[str, FileDigest | None]
) -> BundleReport:
    return BundleReport(
        bundle=str(output.directory),
        name=record.name,
        artefact=record.artefact,
        runtime=record.runtime,
        built=record.built,
        gate=record.gate,
        signed=output.sign is not None,
        licence=record.licence,
        start=record.start,
        files=len(manifest.outputs),
        bytes=sum(digest.bytes for digest in manifest.outputs.values()),
        shared_files=sum(digest is None for digest in copies.values()),
        copied_bytes=sum(digest.bytes for digest in copies.values() if digest is not None),
    )
