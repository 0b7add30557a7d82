"""Whether what was found is to be released: the verdict over all gates, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qtk.release.gates import GateReport, GateResult
from qtk.wording import counted

_ORDER = ("failed", "not measured", "too little evidence", "passed")
Word = Literal["ship", "do not ship", "not measured", "no gates"]


@dataclass(frozen=True)
class ReleaseVerdict:
    """The verdict in a word and a sentence, and the gates, those that failed first, those that passed last. changed: files that are
    not what their manifests say."""

    word: Word
    sentence: str
    gates: tuple[GateResult, ...]
    changed: tuple[str, ...] = ()


def release_verdict(report: GateReport | None, changed: tuple[str, ...]) -> ReleaseVerdict:
    """The verdict. report: of the gates, None where there are none. A directory with a changed file is not released, whatever
    its figures say."""
    gates = () if report is None else tuple(sorted(report.results, key=lambda gate: _ORDER.index(gate.verdict)))
    if changed:
        said = f"{counted(len(changed), 'file')} of this run {'is' if len(changed) == 1 else 'are'} not what the manifests say"
        return ReleaseVerdict("do not ship", f"{said}, so no figure here can be believed.", gates, changed)
    if report is None or not gates:
        sentence = "Nobody said what must hold before a release: this run has no gates, so nothing could fail."
        return ReleaseVerdict("no gates", sentence, ())
    if report.passed:
        return ReleaseVerdict("ship", f"{_all_of(len(gates))} passed.", gates)
    failed = sum(gate.verdict == "failed" for gate in gates)
    open_ = len(report.failures) - failed
    parts = [f"{failed} failed"] if failed else []
    parts += (
        [f"{open_} could not be told" if failed else f"{open_} could not be told from what was measured"]
        if open_
        else []
    )
    passed = len(gates) - len(report.failures)
    parts += [f"{passed} passed"] if passed else []
    sentence = f"Of {counted(len(gates), 'gate')}, {', '.join(parts)}."
    return ReleaseVerdict("do not ship" if failed else "not measured", sentence, gates)


def _all_of(number: int) -> str:
    return "The only gate" if number == 1 else "Both gates" if number == 2 else f"All {number} gates"
