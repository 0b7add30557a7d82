"""The gates of a run: read from its recipe or a file of their own, judged, and written as a directory of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.manifest import MANIFEST_NAME, ManifestRecorder
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError
from qtk.peak_memory import PeakMemory
from qtk.recipes.finished_run import is_run, measured_directories
from qtk.recipes.reading import read_recipe
from qtk.recipes.schema import RECIPE_COPY
from qtk.release.gate_baselines import FoundBaseline, find_baseline, read_baseline
from qtk.release.gate_evidence import evidence_of
from qtk.release.gate_files import JUNIT_NAME, SUMMARY_NAME, junit, summary
from qtk.release.gates import Evidence, Gate, GateReport, judge
from qtk.release.material import reportable_directories
from qtk.release.report import Judge
from qtk.shipped import read_yaml


class GatesFile(BaseModel):
    """A YAML file of gates alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class RunGates:
    """The gates that a run is held against, and the directory that the paths of their baselines begin in."""

    gates: tuple[Gate, ...]
    directory: Path


def gates_of(run: Path, file: Path | None) -> RunGates:
    """The gates in `file`, else those of the recipe that the run copied. InputError where there are none."""
    if file is not None:
        found = RunGates(read_yaml(file, GatesFile, "file of gates").gates, file.parent)
        where = str(file)
    elif is_run(run):
        where = str(run / RECIPE_COPY)
        found = RunGates(read_recipe(run / RECIPE_COPY).gates, run)
    else:
        raise InputError(f"{run} is not a run of a recipe, so its gates have to be given: --gates FILE.")
    if not found.gates:
        raise InputError(f"{where} has no `gates`, so nothing could fail. `qtk list gates` names the metrics.")
    return found


def require_baselines(gates: Sequence[Gate], directory: Path) -> None:
    """InputError for a baseline that does not exist: before hours of work, not after."""
    for gate in gates:
        if gate.baseline is not None:
            find_baseline(gate.baseline, directory)


def judge_of(run: str, held: RunGates) -> Judge | None:
    """What holds the gates against the evidence, for a report; None where there are none."""
    if not held.gates:
        return None

    def judged(evidence: Evidence) -> GateReport:
        found = _baselines(held)
        return judge(run, held.gates, evidence, {name: it.baseline for name, it in found.items()})

    return judged


def gates_if_any(run: Path, file: Path | None) -> RunGates:
    """As `gates_of`, for a report: none where nobody gave any."""
    if file is not None:
        return gates_of(run, file)
    recipe = run / RECIPE_COPY
    return RunGates(read_recipe(recipe).gates if recipe.is_file() and is_run(run) else (), run)


def write_gate(
    run: str, held: RunGates, directories: Sequence[Path], out: Path, *, overwrite: bool = False
) -> GateReport:
    """Judges the gates on what the directories hold, and writes the verdict as JSON, JUnit XML and Markdown into the new
    directory `out`. GateFailed, and nothing is written, when the chain does not verify."""
    gates = held.gates
    recorder = ManifestRecorder("gate", {"gates": [gate.model_dump(mode="json", exclude_none=True) for gate in gates]})
    with PeakMemory() as memory:
        found = _baselines(held)
        evidence = evidence_of(directories)
        report = judge(run, gates, evidence, {name: it.baseline for name, it in found.items()})
        with staged_directory(out, overwrite=overwrite, inputs=directories) as work:
            for directory in directories:
                recorder.add_input(
                    "measured", directory, [directory / MANIFEST_NAME]
                )  # its files were checked just now
            for it in found.values():
                for path in it.files:
                    recorder.add_input("baseline", path.parent if path.name == MANIFEST_NAME else path, [path])
            write_result(report, work / RESULT_NAME)
            (work / JUNIT_NAME).write_bytes(junit(report))
            (work / SUMMARY_NAME).write_text(summary(report), encoding="utf-8")
            recorder.write(work, out, memory.peak_bytes)
    return report


def _baselines(held: RunGates) -> Mapping[str, FoundBaseline]:
    """The baselines that the gates name, by that name."""
    names = dict.fromkeys(gate.baseline for gate in held.gates if gate.baseline is not None)
    return {name: read_baseline(name, held.directory, measured_in) for name in names}


def measured_in(place: Path) -> list[Path]:
    """The directories that hold the evidence: of a run, or of any folder."""
    return measured_directories(place) if is_run(place) else reportable_directories(place)
