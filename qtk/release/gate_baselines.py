"""What a gate's limit may be a fraction of: published figures in a YAML file, the verdict of an earlier `qtk gate`, or an
earlier run's own evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qtk.bench.results import RESULT_NAME
from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.errors import GateFailed, InputError
from qtk.release.gate_evidence import evidence_of
from qtk.release.gates import METRICS, BaselineFigure, Gate, GateBaseline, GateReport
from qtk.shipped import find_yaml, load_yaml, shipped_names, validated

_ROOM = "bench/baselines"


class PublishedFigures(BaseModel):
    """What a baseline file says to gates. figures: metric -> what of it ("64/32", "humaneval-x python", "" for the only one) ->
    value, in the unit of `qtk list gates`. gpu: where figures of time were measured. scores: pass@1 before and after, in
    percent, as `qtk bench compare` prints them; "after" counts here."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str = ""
    gpu: str | None = None
    suite: str | None = None
    scores: dict[str, dict[str, float]] = {}
    figures: dict[str, dict[str, float]] = {}


@dataclass(frozen=True)
class FoundBaseline:
    """A baseline, and the files that it was read from."""

    baseline: GateBaseline
    files: Sequence[Path]


def find_baseline(text: str, directory: Path) -> Path:
    """The place of a gate's baseline: one that travels with qtk, by its name, or a path that begins in `directory`. InputError
    where there is nothing."""
    if text in shipped_names(_ROOM):
        return find_yaml(_ROOM, text, "baseline")
    path = directory / text
    if not path.exists():
        raise InputError(
            f"The baseline {path} of a gate does not exist. Give a YAML file, the {RESULT_NAME} of `qtk gate`, the directory of "
            f"a run, or one of {', '.join(shipped_names(_ROOM))}."
        )
    return path


def read_baseline(text: str, directory: Path, directories_of: Callable[[Path], list[Path]]) -> FoundBaseline:
    """The baseline that `text` names. directories_of: the measured directories of a run or folder.

    InputError for what is not a baseline; GateFailed for a run whose chain does not verify.
    """
    path = find_baseline(text, directory)
    if path.is_dir():
        return _of_run(text, path, directories_of)
    figures = _of_report(path) if path.suffix == ".json" else _of_file(path)

    def of(gate: Gate) -> Mapping[str, BaselineFigure]:
        return {key: figure for key, figure in figures[0].get(gate.metric, {}).items() if gate.selects(key)}

    return FoundBaseline(GateBaseline(text, of, figures[1]), [path])


def _of_run(text: str, path: Path, directories_of: Callable[[Path], list[Path]]) -> FoundBaseline:
    directories = directories_of(path)
    try:
        evidence = evidence_of(directories)
    except GateFailed as error:
        raise GateFailed(f"The baseline {path}: {error}") from None

    def of(gate: Gate) -> Mapping[str, BaselineFigure]:
        return {
            it.key: BaselineFigure(float(it.value), it.standard_error)
            for it in METRICS[gate.metric].measure(evidence, gate)
        }

    gpu = evidence.latencies[-1].gpu if evidence.latencies else None
    return FoundBaseline(GateBaseline(text, of, gpu), [directory / MANIFEST_NAME for directory in directories])


def _of_report(path: Path) -> tuple[dict[str, dict[str, BaselineFigure]], str | None]:
    try:
        report = GateReport.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(f"{path} is not the {RESULT_NAME} of `qtk gate`.") from None
    found: dict[str, dict[str, BaselineFigure]] = {}
    for result in report.results:
        if isinstance(result.measured, int | float):
            found.setdefault(result.metric, {})[result.key] = BaselineFigure(result.measured, result.standard_error)
    return found, report.gpu


def _of_file(path: Path) -> tuple[dict[str, dict[str, BaselineFigure]], str | None]:
    stored = validated(load_yaml(path), PublishedFigures, f"{path} is not a valid baseline")
    if unknown := sorted(stored.figures.keys() - {name for name, metric in METRICS.items() if metric.relative}):
        raise InputError(f"{path}: figures: {', '.join(unknown)}: not a metric that is held against a baseline.")
    figures = {metric: {key: BaselineFigure(it) for key, it in part.items()} for metric, part in stored.figures.items()}
    scores = {
        f"{stored.suite} {name}": BaselineFigure(it["after"]) for name, it in stored.scores.items() if "after" in it
    }
    return {"pass-rate": scores, **figures}, stored.gpu
