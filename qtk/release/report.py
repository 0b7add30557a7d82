"""The Markdown report of a run. Every figure is read from the manifests and results that the run's steps wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import qtk
from qtk.bench.accuracy.results.comparison import read_comparison
from qtk.bench.accuracy.results.leaderboard import Leaderboard
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import Cell
from qtk.bench.accuracy.results.tables import ResultTable, compared_tables, named_score_tables
from qtk.bench.divergence_result import DivergenceResult
from qtk.bench.latency_result import EngineLatency, LatencyReport, SpeedRatio, speed_ratios
from qtk.bench.results import RESULT_NAME
from qtk.bench.sample_result import SampleResult
from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, ManifestRecorder, file_digest, output_files, read_manifest
from qtk.checkpoint.staging import staged_directory
from qtk.engines.description import EngineDescription, is_engine, read_description
from qtk.errors import InputError
from qtk.install_hints import install_hint
from qtk.peak_memory import PeakMemory
from qtk.progress import warn
from qtk.quantization.report import LOG_NAME
from qtk.release.before_after import Measured, Order, Pair, lineage_of, ordered_pairs
from qtk.release.chain import source_names
from qtk.release.plots import can_plot, plot_errors, plot_latency
from qtk.sizes import size_text
from qtk.wording import counted

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
    samples: list[SampleResult] = field(default_factory=list)
    latencies: list[tuple[Made, LatencyReport]] = field(default_factory=list)
    divergences: list[tuple[Made, DivergenceResult]] = field(default_factory=list)
    accuracies: list[tuple[Made, AccuracyResult]] = field(default_factory=list)
    comparisons: list[Pair] = field(default_factory=list)
    leaderboards: list[Leaderboard] = field(default_factory=list)

    @property
    def timed_engines(self) -> list[EngineLatency]:
        """Every engine whose latency was measured."""
        return [engine for _, report in self.latencies for engine in report.engines]

    @property
    def speed_ratios(self) -> list[SpeedRatio]:
        """How many times as fast one of them is as another."""
        return speed_ratios([report for _, report in self.latencies])


def reportable_directories(directory: Path) -> list[Path]:
    """The directories below `directory` that qtk wrote, in the order in which they were written; without reports, verdicts of
    gates and bundles.

    InputError when there is none."""
    if not directory.is_dir():
        raise InputError(f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}.")
    manifests = {path.parent: read_manifest(path.parent) for path in sorted(directory.glob(f"*/{MANIFEST_NAME}"))}
    reportable = [path for path, manifest in manifests.items() if manifest.kind not in ("report", "gate", "bundle")]
    if not reportable:
        raise InputError(f"{directory} does not contain any directory that qtk wrote, so there is nothing to report.")
    return sorted(reportable, key=lambda path: (manifests[path].started, manifests[path].ended))


def write_report(
    directories: Sequence[Path], out: Path, *, title: str, before: str | None = None, overwrite: bool = False
) -> Path:
    """Writes report.md and its plots into the new directory `out`; returns the path of report.md.

    before: the name of the accuracy result that the others are compared with; by default `ordered_pairs` tells. Where it
    cannot, the report says so, and a note does.
    """
    recorder = ManifestRecorder("report", {"title": title, "before": before})
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=directories) as work:
        material = gather(directories)
        for made in material.made:
            recorder.add_input(made.manifest.kind, made.path, output_files(made.path))
        measured = [Measured(made.path, made.manifest, result) for made, result in material.accuracies]
        order = ordered_pairs(measured, material.comparisons, before)
        for sentence in order.left_out:
            warn(f"Not compared: {sentence}.")
        (work / REPORT_NAME).write_text(render(material, order, work, title), encoding="utf-8")
        recorder.write(work, out, memory.peak_bytes)
    return out / REPORT_NAME


def gather(directories: Sequence[Path]) -> Material:
    """Reads what the directories hold, in the order given; latencies of float engines come first, because the others are
    compared with the first."""
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
        elif kind == "sample":
            material.samples.append(SampleResult.model_validate(_result(output.path)))
        elif kind == "latency":
            material.latencies.append((output, LatencyReport.model_validate(_result(output.path))))
        elif kind == "divergence":
            material.divergences.append((output, DivergenceResult.model_validate(_result(output.path))))
        elif kind == "accuracy":
            material.accuracies.append((output, AccuracyResult.model_validate(_result(output.path))))
        elif kind == "accuracy-comparison":
            material.comparisons.append(_stored_pair(output))
        elif kind == "leaderboard":
            material.leaderboards.append(Leaderboard.model_validate(_result(output.path)))
    material.latencies.sort(key=lambda entry: bool(lineage_of(entry[0].path, entry[0].manifest).quantized))
    return material


def _stored_pair(output: Made) -> Pair:
    """A comparison that `qtk bench compare` wrote, in the order in which it was asked for."""
    paths = {record.role: Path(record.path) for record in output.manifest.inputs}
    names = {role: path.parent.name if path.suffix == ".json" else path.name for role, path in paths.items()}
    return Pair(names["before"], names["after"], read_comparison(output.path))


def _result(directory: Path) -> Any:
    return json.loads((directory / RESULT_NAME).read_bytes())


def render(material: Material, order: Order, work: Path, title: str) -> str:
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
        "size": size_text,
        "counted": counted,
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
        warnings=[(made.name, text) for made in material.made for text in made.manifest.warnings],
        by_linear={name: _by_linear(lines) for name, lines in logs.items()},
        worst={name: _worst(lines) for name, lines in logs.items()},
        error_plots=error_plots,
        latency_plot=latency_plot,
        scores=named_score_tables((made.name, result.scores) for made, result in material.accuracies),
        order=order,
        ratios=material.speed_ratios,
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
        warn(f"The report has no plots, because matplotlib is not installed: {install_hint('report')}")
        return {}, None
    errors = {
        name: plot_errors(lines, work / f"error-{name}.png").name
        for name, lines in logs.items()
        if any(line["error_after"] is not None for line in lines)
    }
    latency = plot_latency(material.timed_engines, work / "latency.png")
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
    sentences += [_ratio_in_words(ratio) for ratio in material.speed_ratios]
    for _, result in material.divergences:
        kl, top1 = result.pooled.kl, result.pooled.top1_agreement
        sentences.append(
            f"{Path(result.model).name} against the float model: KL {figure(kl.mean)} ± {figure(kl.standard_error, 2)} "
            f"nats per token, same most likely token {top1.mean:.1%}, perplexity {figure(result.pooled.perplexity, 4)} "
            f"instead of {figure(result.pooled.perplexity_reference, 4)}."
        )
    return sentences


def _ratio_in_words(ratio: SpeedRatio) -> str:
    error = "" if ratio.standard_error is None else f" ± {figure(ratio.standard_error, 2)}"
    pairs = f" ({ratio.pairs} pair{'' if ratio.pairs == 1 else 's'} of calls)" if ratio.pairs else ""
    doubt = f" In doubt: {ratio.in_doubt}." if ratio.in_doubt else ""
    return f"{ratio.engine} at {ratio.shape}: {figure(ratio.ratio)}{error} times the tokens/s of {ratio.baseline}{pairs}.{doubt}"


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
