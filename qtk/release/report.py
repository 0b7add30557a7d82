"""The Markdown report of a run. Every figure is read from the manifests and results that the run's steps wrote."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import qtk
from qtk.bench.accuracy.results.comparison import Comparison, compare, read_comparison
from qtk.bench.accuracy.results.leaderboard import Leaderboard
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import Cell, CompareOptions
from qtk.bench.accuracy.results.tables import ResultTable, compared_tables, named_score_tables
from qtk.bench.divergence import DivergenceResult
from qtk.bench.latency import LatencyReport
from qtk.bench.results import RESULT_NAME
from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, ManifestRecorder, file_digest, output_files, read_manifest
from qtk.checkpoint.staging import staged_directory
from qtk.engines.description import EngineDescription, is_engine, read_description
from qtk.errors import InputError
from qtk.peak_memory import PeakMemory
from qtk.progress import note
from qtk.quantization.report import LOG_NAME
from qtk.release.chain import source_names
from qtk.release.plots import can_plot, plot_errors, plot_latency
from qtk.sizes import size_text

REPORT_NAME = "report.md"
_WORST_LAYERS = 10


@dataclass(frozen=True)
class Made:
    """A directory that qtk wrote: its path, its manifest, and the manifest's digest, by which other manifests refer to it."""

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bytes(self) -> int:
        """Size of all its output files."""
        return sum(digest.bytes for digest in self.manifest.outputs.values())


@dataclass
class Material:
    """What a report is made of, sorted by kind."""

    made: list[Made]
    merged: list[Made] = field(default_factory=list)
    quantized: list[Made] = field(default_factory=list)
    engines: list[tuple[Made, EngineDescription]] = field(default_factory=list)
    latencies: list[tuple[Made, LatencyReport]] = field(default_factory=list)
    divergences: list[tuple[Made, DivergenceResult]] = field(default_factory=list)
    accuracies: list[tuple[Made, AccuracyResult]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    leaderboards: list[Leaderboard] = field(default_factory=list)


def reportable_directories(directory: Path) -> list[Path]:
    """The directories below `directory` that qtk wrote, reports left out, in the order in which they were written.

    InputError when there is none."""
    if not directory.is_dir():
        raise InputError(f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}.")
    manifests = {path.parent: read_manifest(path.parent) for path in sorted(directory.glob(f"*/{MANIFEST_NAME}"))}
    reportable = [path for path, manifest in manifests.items() if manifest.kind != "report"]
    if not reportable:
        raise InputError(f"{directory} does not contain any directory that qtk wrote, so there is nothing to report.")
    return sorted(reportable, key=lambda path: (manifests[path].started, manifests[path].ended))


def write_report(directories: Sequence[Path], out: Path, *, title: str, overwrite: bool = False) -> Path:
    """Writes report.md and its plots into the new directory `out`; returns the path of report.md."""
    recorder = ManifestRecorder("report", {"title": title})
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=directories) as work:
        material = gather(directories)
        for made in material.made:
            recorder.add_input(made.manifest.kind, made.path, output_files(made.path))
        (work / REPORT_NAME).write_text(render(material, work, title), encoding="utf-8")
        recorder.write(work, out, memory.peak_bytes)
    return out / REPORT_NAME


def gather(directories: Sequence[Path]) -> Material:
    """Reads what the directories hold, in the order given. Where two are compared, the first is the reference."""
    made = [Made(path, read_manifest(path), file_digest(path / MANIFEST_NAME).sha256) for path in directories]
    material = Material(made)
    for output in material.made:
        kind = output.manifest.kind
        if kind == "merge":
            material.merged.append(output)
        elif kind == "quantized-model":
            material.quantized.append(output)
        elif is_engine(output.path):
            material.engines.append((output, read_description(output.path)))
        elif kind == "latency":
            material.latencies.append((output, LatencyReport.model_validate(_result(output.path))))
        elif kind == "divergence":
            material.divergences.append((output, DivergenceResult.model_validate(_result(output.path))))
        elif kind == "accuracy":
            material.accuracies.append((output, AccuracyResult.model_validate(_result(output.path))))
        elif kind == "accuracy-comparison":
            material.comparisons.append(read_comparison(output.path))
        elif kind == "leaderboard":
            material.leaderboards.append(Leaderboard.model_validate(_result(output.path)))
    return material


def _result(directory: Path) -> Any:
    return json.loads((directory / RESULT_NAME).read_bytes())


def render(material: Material, work: Path, title: str) -> str:
    """The report as Markdown; plots are written into `work`."""
    logs = {made.name: _read_log(made.path) for made in material.quantized}
    error_plots, latency_plot = _plots(material, logs, work)
    environment = Environment(
        loader=PackageLoader("qtk.release"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, read as text
    )
    environment.filters |= {
        "megabytes": size_text,
        "figure": figure,
        "compared_tables": compared_tables,
        "markdown": markdown,
        "linear": lambda name: name.rsplit(".", 1)[-1],
    }
    return environment.get_template(f"{REPORT_NAME}.j2").render(
        material=material,
        title=title,
        version=qtk.__version__,
        short=in_short(material),
        machines=_machines(material.made),
        by_linear={name: _by_linear(lines) for name, lines in logs.items()},
        worst={name: _worst(lines) for name, lines in logs.items()},
        error_plots=error_plots,
        latency_plot=latency_plot,
        scores=named_score_tables((made.name, result.scores) for made, result in material.accuracies),
        comparisons=_comparisons(material),
        ratios=latency_ratios([report for _, report in material.latencies]),
        notes_report=lambda made: made.manifest.notes.get("report", {}),
        engine_paths=[made.path for made, _ in material.engines],
        own_divergences=[(Path(r.model).name, r) for _, r in material.divergences if r.from_checkpoint is not None],
        sources=_sources(material.made),
        names={made.name: Path(result.model).name for made, result in material.divergences},
    )


def _sources(made: Sequence[Made]) -> dict[str, list[str]]:
    """What each directory was made from, by the digests of manifests."""
    known = {other.sha256: other.name for other in made}
    return {output.name: source_names(output.path, output.manifest, known) for output in made}


def _plots(
    material: Material, logs: Mapping[str, list[dict[str, Any]]], work: Path
) -> tuple[dict[str, str], str | None]:
    """Draws the plots into `work`: (quantized model -> file of its errors, file of the latencies). Neither without matplotlib."""
    if not can_plot():
        note("The report has no plots, because matplotlib is not installed: pip install 'qtk[report]'.")
        return {}, None
    errors = {
        name: plot_errors(lines, work / f"error-{name}.png").name
        for name, lines in logs.items()
        if any(line["error_after"] is not None for line in lines)
    }
    latency = plot_latency({report.engine: report for _, report in material.latencies}, work / "latency.png")
    return errors, latency.name if latency else None


def figure(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, in scientific notation where it is very small or large; a dash for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        magnitude = 0 if value == 0 else math.floor(math.log10(abs(value)))
        return f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return f"{value:.{digits - 1}e}"


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


def in_short(material: Material) -> list[str]:
    """The two or three sentences that a reader wants first. Only what was measured is mentioned."""
    sentences = []
    for made in material.quantized:
        facts = made.manifest.notes["report"]
        share = facts["quantized_bytes"] / facts["float_bytes"]
        sentences.append(
            f"{made.name}: {facts['bits']} bits by {facts['method']}, weights {share:.0%} of the float model's."
        )
    for row in latency_ratios([report for _, report in material.latencies]):
        first, *_ = row["ratios"]
        others = list(row["ratios"].items())[1:]
        sentences += [
            f"{engine} at {row['shape']}: {figure(ratio)} times the tokens/s of {first}." for engine, ratio in others
        ]
    for _, result in material.divergences:
        kl, top1 = result.pooled.kl, result.pooled.top1_agreement
        sentences.append(
            f"{Path(result.model).name} against the float model: KL {figure(kl.mean)} ± {figure(kl.standard_error, 2)} "
            f"nats per token, same most likely token {top1.mean:.1%}, perplexity {figure(result.pooled.perplexity, 4)} "
            f"instead of {figure(result.pooled.perplexity_reference, 4)}."
        )
    return sentences


def latency_ratios(reports: Sequence[LatencyReport]) -> list[dict[str, Any]]:
    """For each shape that all engines ran: tokens/s of each, and its ratio to the first one's."""
    if len(reports) < 2:
        return []
    rows = []
    for shape in reports[0].shapes:
        rates = {
            report.engine: other.tokens_per_s
            for report in reports
            for other in report.shapes
            if (other.input_len, other.output_len) == (shape.input_len, shape.output_len)
        }
        if len(rates) == len(reports):
            first = rates[reports[0].engine]
            rows.append(
                {
                    "shape": f"{shape.input_len}/{shape.output_len}",
                    "ratios": {engine: rate / first for engine, rate in rates.items()},
                }
            )
    return rows


def _comparisons(material: Material) -> list[Comparison]:
    """The comparisons that were made, and the first accuracy result, the float model's in a run, beside each later one that
    was made on the same terms."""
    comparisons = list(material.comparisons)
    for _, result in material.accuracies[1:]:
        with contextlib.suppress(InputError):  # other tasks or other rules: nothing to compare
            comparisons.append(compare(material.accuracies[0][1], result, CompareOptions(baseline="none")))
    return comparisons


def _read_log(directory: Path) -> list[dict[str, Any]]:
    path = directory / LOG_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _by_linear(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and largest error of each kind of linear over the blocks."""
    kinds = dict.fromkeys(line["layer"].rsplit(".", 1)[-1] for line in lines if line["error_after"] is not None)
    rows = []
    for kind in kinds:
        of_kind = [x for x in lines if x["layer"].rsplit(".", 1)[-1] == kind and x["error_after"] is not None]
        before = [x["error_before"] for x in of_kind if x["error_before"] is not None]
        after = [x["error_after"] for x in of_kind]
        rows.append(
            {
                "kind": kind,
                "count": len(of_kind),
                "before": sum(before) / len(before) if before else None,
                "after": sum(after) / len(after),
                "largest": max(after),
            }
        )
    return rows


def _worst(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [line for line in lines if line["error_after"] is not None]
    return sorted(known, key=lambda line: -line["error_after"])[:_WORST_LAYERS]


def _machines(made: Sequence[Made]) -> list[dict[str, Any]]:
    """The distinct machines that the steps ran on, with the steps of each."""
    machines: dict[str, dict[str, Any]] = {}
    for output in made:
        manifest = output.manifest
        key = json.dumps(manifest.machine, sort_keys=True)
        entry = machines.setdefault(key, {"machine": manifest.machine, "packages": manifest.packages, "steps": []})
        entry["steps"].append(output.name)
    return list(machines.values())
