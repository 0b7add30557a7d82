"""What a run's directories say for its gates, and whether they can be believed: every file is checked against its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtk.checkpoint.manifest import verify_chain
from qtk.errors import GateFailed, listing
from qtk.release.before_after import ordered_pairs
from qtk.release.gates import Evidence
from qtk.release.material import Material, gather


def evidence_of(directories: Sequence[Path]) -> Evidence:
    """The evidence in the directories, in the order of the chain. GateFailed when a file of theirs, or of an input on this
    machine, is not what its manifest says: a gate believes no figure that was edited."""
    changed = [finding for finding in verify_chain(*directories) if finding.bad]
    if changed:
        raise GateFailed(
            "The chain does not verify, so no gate can pass:\n"
            + listing(f"{finding.status}: {Path(finding.directory) / finding.file}" for finding in changed)
        )
    return evidence_from(gather(directories))


def evidence_from(material: Material) -> Evidence:
    """What was measured, in the form in which gates are held against it."""
    results = {made.name: result for made, result in material.accuracies}
    pairs = ordered_pairs(material.measured).pairs
    return Evidence(
        accuracies=[(made.name, result) for made, result in material.accuracies],
        accuracy_pairs=[(results[pair.before], results[pair.after]) for pair in pairs],
        divergences=[result for _, result in material.divergences],
        latencies=material.timed_engines,
        ratios=material.speed_ratios,
        engines=[(engine.made.name, engine.description) for engine in material.engines],
        sizes=[(made.name, made.bytes) for made in material.models],
    )
