"""What a report and the gates read: the directories that qtk wrote, sorted by kind, each with its manifest and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.comparison import read_comparison
from qtk.bench.accuracy.results.leaderboard import Leaderboard
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.divergence_result import DivergenceResult
from qtk.bench.latency_result import EngineLatency, LatencyReport, SpeedRatio, speed_ratios
from qtk.bench.results import RESULT_NAME
from qtk.bench.sample_result import SampleResult
from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, file_digest, read_manifest
from qtk.engines.description import EngineDescription, is_engine, read_description
from qtk.errors import InputError
from qtk.finetuning.metrics import read_metrics
from qtk.finetuning.record import FinetuneReport, read_record
from qtk.quantization.report import LOG_NAME, LayerRecord
from qtk.release.before_after import Measured, Pair, lineage_of


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


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model: what its quantization reported (as `QuantizeReport`; an earlier qtk's may lack fields), and the log's
    line on each linear."""

    made: Made
    facts: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter that qtk trained: the record of its training, and the lines of its course (`qtk.finetuning.metrics`)."""

    made: Made
    report: FinetuneReport
    course: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, or what was prepared for one, with its engine.json."""

    made: Made
    description: EngineDescription


class AcceptanceCheck(BaseModel):
    """A check of `qtk accept`, as far as it is reported."""

    model_config = ConfigDict(frozen=True)
    name: str
    passed: bool
    meaning: str


class AcceptanceRecord(BaseModel):
    """What is reported of an acceptance (`qtk.release.accept.Acceptance`, which loads what runs engines)."""

    model_config = ConfigDict(frozen=True)
    engine: str
    gpu: str
    verdict: str
    checks: tuple[AcceptanceCheck, ...]
    checks_not_run: dict[str, str] = {}
    shapes_not_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """The directories, and what they hold, sorted by kind. Each kind stands in the order given, but latencies of float engines
    come first, because the others are compared with the first."""

    made: tuple[Made, ...]
    trained: tuple[TrainedAdapter, ...]
    merged: tuple[Made, ...]
    quantized: tuple[QuantizedModel, ...]
    engines: tuple[BuiltEngine, ...]
    samples: tuple[SampleResult, ...]
    latencies: tuple[tuple[Made, LatencyReport], ...]
    divergences: tuple[tuple[Made, DivergenceResult], ...]
    accuracies: tuple[tuple[Made, AccuracyResult], ...]
    acceptances: tuple[AcceptanceRecord, ...]
    comparisons: tuple[Pair, ...]
    leaderboards: tuple[Leaderboard, ...]

    @property
    def models(self) -> list[Made]:
        """What holds weights: merged and quantized models, then engines."""
        return [*self.merged, *(model.made for model in self.quantized), *(engine.made for engine in self.engines)]

    @property
    def timed_engines(self) -> list[EngineLatency]:
        """Every engine whose latency was measured."""
        return [engine for _, report in self.latencies for engine in report.engines]

    @property
    def speed_ratios(self) -> list[SpeedRatio]:
        """How many times as fast one of them is as another."""
        return speed_ratios([report for _, report in self.latencies])

    @property
    def measured(self) -> list[Measured]:
        """The accuracy results, as their order is told from."""
        return [Measured(made.path, made.manifest, result) for made, result in self.accuracies]


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


def gather(directories: Sequence[Path]) -> Material:
    """Reads what the directories hold."""
    every = [Made(path, read_manifest(path), file_digest(path / MANIFEST_NAME).sha256) for path in directories]

    def of(kind: str) -> list[Made]:
        return [made for made in every if made.manifest.kind == kind]

    def results(kind: str, model: type[_Result]) -> list[tuple[Made, _Result]]:
        return [(made, model.model_validate_json((made.path / RESULT_NAME).read_bytes())) for made in of(kind)]

    latencies = results("latency", LatencyReport)
    latencies.sort(key=lambda entry: bool(lineage_of(entry[0].path, entry[0].manifest).quantized))
    return Material(
        made=tuple(every),
        trained=tuple(
            TrainedAdapter(made, report, tuple(read_metrics(made.path)))
            for made in of("trained-adapter")
            if (report := read_record(made.path)) is not None
        ),
        merged=tuple(of("merge")),
        quantized=tuple(
            QuantizedModel(made, made.manifest.notes["report"], _layers(made.path)) for made in of("quantized-model")
        ),
        engines=tuple(BuiltEngine(made, read_description(made.path)) for made in every if is_engine(made.path)),
        samples=tuple(result for _, result in results("sample", SampleResult)),
        latencies=tuple(latencies),
        divergences=tuple(results("divergence", DivergenceResult)),
        accuracies=tuple(results("accuracy", AccuracyResult)),
        acceptances=tuple(result for _, result in results("acceptance", AcceptanceRecord)),
        comparisons=tuple(_stored_pair(made) for made in of("accuracy-comparison")),
        leaderboards=tuple(result for _, result in results("leaderboard", Leaderboard)),
    )


_Result = TypeVar("_Result", bound=BaseModel)


def _stored_pair(made: Made) -> Pair:
    """A comparison that `qtk bench compare` wrote, in the order in which it was asked for."""
    paths = {record.role: Path(record.path) for record in made.manifest.inputs}
    names = {role: path.parent.name if path.suffix == ".json" else path.name for role, path in paths.items()}
    return Pair(names["before"], names["after"], read_comparison(made.path))


def _layers(directory: Path) -> tuple[LayerRecord, ...]:
    path = directory / LOG_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return tuple(LayerRecord.model_validate_json(line) for line in lines)
