"""The gates of a run: read from its recipe or a file of their own, judged, and written as a directory of the chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.manifest import MANIFEST_NAME, ManifestRecorder
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError
from qtk.peak_memory import PeakMemory
from qtk.recipes.finished_run import is_run
from qtk.recipes.reading import read_recipe
from qtk.recipes.schema import RECIPE_COPY
from qtk.release.gate_evidence import evidence_of
from qtk.release.gate_files import JUNIT_NAME, SUMMARY_NAME, junit, summary
from qtk.release.gates import Gate, GateReport, judge
from qtk.shipped import read_yaml


class GatesFile(BaseModel):
    """A YAML file of gates alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gates: tuple[Gate, ...]


def gates_of(run: Path, file: Path | None) -> tuple[Gate, ...]:
    """The gates in `file`, else those of the recipe that the run copied. InputError where there are none."""
    if file is not None:
        gates = read_yaml(file, GatesFile, "file of gates").gates
        where = str(file)
    elif is_run(run):
        where = str(run / RECIPE_COPY)
        gates = read_recipe(run / RECIPE_COPY).gates
    else:
        raise InputError(f"{run} is not a run of a recipe, so its gates have to be given: --gates FILE.")
    if not gates:
        raise InputError(f"{where} has no `gates`, so nothing could fail. `qtk list gates` names the metrics.")
    return gates


def write_gate(
    run: str, gates: Sequence[Gate], directories: Sequence[Path], out: Path, *, overwrite: bool = False
) -> GateReport:
    """Judges the gates on what the directories hold, and writes the verdict as JSON, JUnit XML and Markdown into the new
    directory `out`. GateFailed, and nothing is written, when the chain does not verify."""
    recorder = ManifestRecorder("gate", {"gates": [gate.model_dump(mode="json", exclude_none=True) for gate in gates]})
    with PeakMemory() as memory:
        report = judge(run, gates, evidence_of(directories))
        with staged_directory(out, overwrite=overwrite, inputs=directories) as work:
            for directory in directories:
                recorder.add_input(
                    "measured", directory, [directory / MANIFEST_NAME]
                )  # its files were checked just now
            write_result(report, work / RESULT_NAME)
            (work / JUNIT_NAME).write_bytes(junit(report))
            (work / SUMMARY_NAME).write_text(summary(report), encoding="utf-8")
            recorder.write(work, out, memory.peak_bytes)
    return report
