"""The report of a run: a page, the same in Markdown, and its charts as SVG files. Every figure is read from the manifests and
results that the run's steps wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from qtk.bench.accuracy.results.score import Cell
from qtk.bench.accuracy.results.tables import ResultTable
from qtk.checkpoint.manifest import ManifestRecorder, output_files
from qtk.checkpoint.staging import staged_directory
from qtk.peak_memory import PeakMemory
from qtk.progress import warn
from qtk.release.before_after import ordered_pairs
from qtk.release.drawings import Drawings, drawings
from qtk.release.findings import Findings, findings
from qtk.release.gate_evidence import evidence_from
from qtk.release.gate_files import gate_line, markdown_line
from qtk.release.gates import Evidence, GateReport
from qtk.release.material import gather
from qtk.release.numbers import figure
from qtk.release.page import PAGE_NAME, page
from qtk.release.verdict import release_verdict
from qtk.sizes import size_text
from qtk.wording import counted

REPORT_NAME = "report.md"
Judge = Callable[[Evidence], GateReport]


def write_report(
    directories: Sequence[Path],
    out: Path,
    *,
    title: str,
    before: str | None = None,
    judge: Judge | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes report.html, report.md and the charts into the new directory `out`; returns the path of report.md.

    before: the name of the accuracy result that the others are compared with; by default `ordered_pairs` tells. Where it
    cannot, the report says so, and a note does. judge: holds the gates against what was measured; None where there are none.
    """
    recorder = ManifestRecorder("report", {"title": title, "before": before})
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=directories) as work:
        material = gather(directories)
        for made in material.made:
            recorder.add_input(made.manifest.kind, made.path, output_files(made.path))
        order = ordered_pairs(material.measured, material.comparisons, before)
        for sentence in order.left_out:
            warn(f"Not compared: {sentence}.")
        gates = None if judge is None else judge(evidence_from(material))
        changed = tuple(os.path.join(path.parent.name, path.name) for path in recorder.changed_inputs())
        found = findings(title, material, order, release_verdict(gates, changed))
        drawn = drawings(found)
        for name, chart in drawn.files().items():
            (work / name).write_text(chart.file(), encoding="utf-8")
        (work / REPORT_NAME).write_text(render(found, drawn), encoding="utf-8")
        (work / PAGE_NAME).write_text(page(found, drawn), encoding="utf-8")
        recorder.write(work, out, memory.peak_bytes)
    return out / REPORT_NAME


def render(found: Findings, drawn: Drawings) -> str:
    """The report as Markdown, which shows the charts' files."""
    environment = Environment(
        loader=PackageLoader("qtk.release"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, read as text
    )
    environment.filters |= {"size": size_text, "counted": counted, "figure": figure, "markdown": markdown}
    return environment.get_template(f"{REPORT_NAME}.j2").render(
        found=found,
        material=found.material,
        drawn=drawn,
        gate_lines=[markdown_line(gate_line(gate)) for gate in found.verdict.gates],
    )


def markdown(table: ResultTable) -> str:
    """The table in Markdown: numbers are aligned right, standard errors have two significant digits."""
    numeric = [
        all(isinstance(row[index], int | float) or row[index] is None for row in table.rows)
        for index in range(len(table.columns))
    ]
    lines = [table.columns, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(*pair) for pair in zip(table.columns, row, strict=True)] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: str, value: Cell) -> str:
    if value is None or isinstance(value, float):
        return figure(value, 2 if column.startswith("±") else 4)
    return str(value)
