"""What must hold before a run is released: gates, and how they are judged by what the run's steps wrote.

A gate names a metric, what of it is meant (a suite, a language, a text, a shape), and one limit, which may be a fraction of a
baseline. It passes on evidence only: what was not measured, or measured on too little, does not pass.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qtk.bench.accuracy.results.comparison import Comparison, compare
from qtk.bench.accuracy.results.programs import ProgramsScore
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import ComparedRow, CompareOptions

if TYPE_CHECKING:
    from qtk.bench.divergence_result import DivergenceResult, TextDivergence
    from qtk.bench.latency_result import EngineLatency, ShapeLatency, SpeedRatio
    from qtk.engines.description import EngineDescription

Verdict = Literal["passed", "failed", "not measured", "too little evidence"]
POOLED = "all"  # what a divergence result calls its texts together
_CERTAIN = 1.96  # standard errors: two-sided 95 %


class Gate(BaseModel):
    """One thing that must hold. What is left out of suite, language, text and shape means every one that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(
        description="What is measured; `qtk list gates` names the metrics.", json_schema_extra={"names": "gates"}
    )
    at_most: float | None = Field(None, description="The largest value that passes.")
    at_least: float | None = Field(None, description="The smallest value that passes.")
    suite: str | None = Field(None, description="Of accuracy metrics: the suite.")
    language: str | None = Field(None, description="Of accuracy metrics: the language, the set or the task.")
    text: str | None = Field(None, description="Of kl and perplexity metrics: the text; default: all texts together.")
    shape: str | None = Field(None, description='Of latency metrics: the shape, such as "64/32".')
    level: str | None = Field(None, description="Of sandbox: the weakest level that passes.")
    baseline: str | None = Field(
        None,
        description="at_most and at_least are fractions of this baseline's figures: the name of one that travels with qtk, "
        "a YAML file, the result.json of `qtk gate`, or the directory of an earlier run.",
        json_schema_extra={"names": "baselines"},
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Gate:
        metric = METRICS.get(self.metric)
        if metric is None:
            close = difflib.get_close_matches(self.metric, METRICS, n=2, cutoff=0.4)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(METRICS)}"
            raise ValueError(f"the metric {self.metric!r} is not known{hint}")
        given = {name for name in (*_SELECTORS, "at_most", "at_least") if getattr(self, name) is not None}
        if foreign := sorted(given - {*metric.selectors, *metric.limits}):
            takes = ", ".join((*metric.limits, *metric.selectors))
            raise ValueError(f"{self.metric} does not take {', '.join(foreign)}; it takes {takes}")
        if self.baseline is not None and not metric.relative:
            having = ", ".join(name for name, it in METRICS.items() if it.relative)
            raise ValueError(f"{self.metric} takes no baseline; these do: {having}")
        if len(given & set(metric.limits)) != 1:
            raise ValueError(f"{self.metric} needs a limit: {' or '.join(metric.limits)}")
        if self.level is not None and self.level not in _SANDBOX_LEVELS:
            levels = ", ".join(reversed(_SANDBOX_LEVELS))
            raise ValueError(f"there is no sandbox level {self.level!r}; there are {levels}")
        return self

    @property
    def factor(self) -> float | None:
        """The limit as a number: a value of the metric, or a fraction of the baseline's."""
        return self.at_most if self.at_most is not None else self.at_least

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.level is not None:
            return f"at least {self.level}"
        words = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return words if self.baseline is None else f"{words} of {self.baseline}"

    def limit_of(self, figure: float) -> str:
        """The limit in words, where the baseline's value is `figure`."""
        assert self.factor is not None
        words = "at most" if self.at_most is not None else "at least"
        return f"{words} {self.factor * figure:.4g} ({self.factor:g} of {figure:.4g} in {self.baseline})"

    def holds(self, value: float, unit: float = 1.0) -> bool:
        """Whether a value is within the limit, which is a number of `unit`: of the baseline's value where there is one."""
        if self.at_most is not None:
            return value <= self.at_most * unit
        return self.at_least is not None and value >= self.at_least * unit

    def selects(self, key: str) -> bool:
        """Whether a measurement or a baseline's figure is meant (see `Measurement.key`)."""
        selectors = METRICS[self.metric].selectors
        if "shape" in selectors:
            return self.shape in (None, key)
        if "text" in selectors:
            return key.partition(", ")[2] == (self.text or POOLED)
        suite, _, name = key.partition(" ")
        return self.suite in (None, suite) and self.language in (None, name)


_SANDBOX_LEVELS = ("rlimits", "landlock", "user-namespaces", "bubblewrap", "namespaces")  # the weakest first
_SELECTORS = ("suite", "language", "text", "shape", "level")


class GateResult(BaseModel):
    """A gate, what was measured for it, and the verdict. standard_error: of `measured`, None where it has none or where it is
    not known. uncertain: the limit lies within 1.96 standard errors of what was measured. why: of a verdict that is not a
    plain comparison of two numbers. key: as of `Measurement`."""

    model_config = ConfigDict(frozen=True)
    metric: str
    of: str
    measured: float | str | None
    unit: str
    limit: str
    standard_error: float | None = None
    verdict: Verdict
    uncertain: bool = False
    why: str = ""
    key: str = ""

    @property
    def name(self) -> str:
        """The metric and what of it."""
        return f"{self.metric} ({self.of})" if self.of else self.metric

    @property
    def bound(self) -> float | None:
        """The number that the limit's words begin with; None where it is not a number."""
        try:
            return float(self.limit.split()[2])
        except (IndexError, ValueError):
            return None


class GateReport(BaseModel):
    """The verdict on a run. passed: whether every gate passed; a run without gates does not pass. gpu: of the engine that was
    timed last."""

    model_config = ConfigDict(frozen=True)
    run: str
    passed: bool
    results: tuple[GateResult, ...]
    gpu: str | None = None

    @property
    def failures(self) -> list[GateResult]:
        """Those that did not pass."""
        return [result for result in self.results if result.verdict != "passed"]


@dataclass(frozen=True)
class Evidence:
    """What a run's steps measured. sizes: of each model and engine directory in bytes, by name, in the order of the chain."""

    accuracies: Sequence[tuple[str, AccuracyResult]]
    accuracy_pairs: Sequence[tuple[AccuracyResult, AccuracyResult]]
    divergences: Sequence[DivergenceResult]
    latencies: Sequence[EngineLatency]
    ratios: Sequence[SpeedRatio]
    engines: Sequence[tuple[str, EngineDescription]]
    sizes: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Measurement:
    """One value that a gate is held against; `of` says of what. verdict, why: where the value alone does not decide.

    key: what it is called in a baseline: the shape, "SUITE LANGUAGE", "MODEL, TEXT", "" for the only one of its metric.
    """

    of: str
    value: float | str
    standard_error: float | None = None
    verdict: Verdict | None = None
    why: str = ""
    key: str = ""


@dataclass(frozen=True)
class BaselineFigure:
    """A value that a limit is a fraction of, with its standard error where that is known."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class GateBaseline:
    """A baseline: its figures for what a gate selects, by key, and the GPU on which figures of time were measured."""

    name: str
    figures: Callable[[Gate], Mapping[str, BaselineFigure]]
    gpu: str | None = None


Measure = Callable[[Evidence, Gate], Iterable[Measurement]]


@dataclass(frozen=True)
class Metric:
    """A metric of gates: its unit, what it is of, the limits and selectors that it takes, and how it is read. relative: whether
    a limit may be a fraction of a baseline's figure."""

    unit: str
    about: str
    measure: Measure
    limits: tuple[str, ...]
    selectors: tuple[str, ...] = ()
    relative: bool = False


def judge(
    run: str, gates: Sequence[Gate], evidence: Evidence, baselines: Mapping[str, GateBaseline] | None = None
) -> GateReport:
    """Holds every gate against the evidence. baselines: those that the gates name, by that name."""
    results = tuple(
        result
        for gate in gates
        for result in _judge(gate, evidence, (baselines or {})[gate.baseline] if gate.baseline else None)
    )
    return GateReport(
        run=run,
        passed=bool(results) and all(r.verdict == "passed" for r in results),
        results=results,
        gpu=evidence.latencies[-1].gpu if evidence.latencies else None,
    )


def _judge(gate: Gate, evidence: Evidence, baseline: GateBaseline | None) -> list[GateResult]:
    metric = METRICS[gate.metric]
    measurements = list(metric.measure(evidence, gate))
    if baseline is not None:
        return _against(baseline, gate, measurements, evidence)
    if not measurements:
        wanted = ", ".join(str(value) for name in _SELECTORS[:4] if (value := getattr(gate, name)) is not None)
        return [_not_measured(gate, wanted, _NOT_MEASURED)]
    return [_result(gate, metric, measurement, gate.limit) for measurement in measurements]


def _against(
    baseline: GateBaseline, gate: Gate, measurements: Sequence[Measurement], evidence: Evidence
) -> list[GateResult]:
    """The results of a gate whose limit is a fraction of a baseline's figures: of each that was measured, and of each that the
    baseline has and this run lacks."""
    metric, figures = METRICS[gate.metric], baseline.figures(gate)
    gpu = evidence.latencies[-1].gpu if evidence.latencies else None
    elsewhere = "shape" in metric.selectors and baseline.gpu is not None and gpu is not None and gpu != baseline.gpu
    results = []
    for found in measurements:
        figure = figures.get(found.key)
        if figure is None:
            results.append(_not_measured(gate, found.of, f"the baseline {baseline.name} has no figure for it"))
        elif elsewhere:
            why = f"the baseline was measured on {baseline.gpu}, this run on {gpu}: times do not compare"
            doubtful = replace(found, verdict="too little evidence", why=why)
            results.append(_result(gate, metric, doubtful, gate.limit_of(figure.value)))
        else:
            results.append(_result(gate, metric, found, gate.limit_of(figure.value), figure))
    missing = [key for key in figures if key not in {found.key for found in measurements}]
    results += [_not_measured(gate, key, f"the baseline has it; {_NOT_MEASURED}") for key in missing]
    return results or [_not_measured(gate, "", _NOT_MEASURED)]


_NOT_MEASURED = "this run did not measure it, and what is not measured does not pass"


def _not_measured(gate: Gate, of: str, why: str) -> GateResult:
    return GateResult(
        metric=gate.metric,
        of=of,
        measured=None,
        unit=METRICS[gate.metric].unit,
        limit=gate.limit,
        verdict="not measured",
        why=why,
    )


def _result(
    gate: Gate, metric: Metric, found: Measurement, limit: str, figure: BaselineFigure | None = None
) -> GateResult:
    verdict, uncertain = found.verdict, False
    if verdict is None:
        assert isinstance(found.value, int | float)
        unit = 1.0 if figure is None else figure.value
        verdict = "passed" if gate.holds(found.value, unit) else "failed"
        bound = None if gate.factor is None else gate.factor * unit
        errors = [found.standard_error or 0.0]
        if figure is not None and gate.factor is not None:
            errors.append(gate.factor * (figure.standard_error or 0.0))
        error = math.hypot(*errors)
        if error and bound is not None:
            uncertain = abs(found.value - bound) <= _CERTAIN * error
    return GateResult(
        metric=gate.metric,
        of=found.of,
        measured=found.value,
        unit=metric.unit,
        limit=limit,
        standard_error=found.standard_error,
        verdict=verdict,
        uncertain=uncertain,
        why=found.why,
        key=found.key,
    )


def _accuracy_drop(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """The loss of pass@1 in points, judged by the comparison's own paired test with the gate's limit as its tolerance."""
    assert gate.at_most is not None
    options = CompareOptions(tolerance=gate.at_most, baseline="none")
    forged = {it.label for pair in evidence.accuracy_pairs for result in pair for it in result.scores if it.forged}
    for row in _compared(evidence, gate, options):
        if row.unit == "points":
            yield replace(_loss(row), verdict="failed", why=_FORGED) if row.label in forged else _loss(row)


def _likelihood_drop(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    assert gate.at_most is not None
    options = CompareOptions(likelihood_tolerance=gate.at_most, baseline="none")
    for row in _compared(evidence, gate, options):
        if row.unit == "nats per token":
            yield _loss(row)


def _compared(evidence: Evidence, gate: Gate, options: CompareOptions) -> Iterable[ComparedRow]:
    for before, after in evidence.accuracy_pairs:
        comparison: Comparison = compare(before, after, options)
        for row in comparison.rows:
            if gate.suite in (None, row.suite) and gate.language in (None, row.name) and row.verdict is not None:
                yield row


def _loss(row: ComparedRow) -> Measurement:
    verdicts: dict[str, Verdict] = {"within tolerance": "passed", "beyond tolerance": "failed"}
    verdict = verdicts.get(str(row.verdict), "too little evidence")
    changed = f"p {row.p_value:.2g}" if row.p_value is not None else ""
    few = f"{row.evidence} are too few to tell" if verdict == "too little evidence" else ""
    loss = -row.difference if row.difference else 0.0
    return Measurement(row.label, loss, row.difference_error, verdict, "; ".join(filter(None, (changed, few))))


def _pass_rate(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """pass@1 of the last model that was scored, in percent."""
    for name, result in evidence.accuracies[-1:]:
        for score in result.scores:
            if not isinstance(score, ProgramsScore) or gate.suite not in (None, score.suite):
                continue
            for rate in score.pass_at:
                if rate.k == 1 and gate.language in (None, score.name):
                    error = None if rate.standard_error is None else 100 * rate.standard_error
                    found = Measurement(f"{name}: {score.label}", 100 * rate.value, error, key=score.label)
                    yield replace(found, verdict="failed", why=_FORGED) if score.forged else found


_FORGED = "answers passed canaries, so the rate cannot be believed"


def _texts(evidence: Evidence, gate: Gate) -> Iterable[tuple[str, TextDivergence]]:
    for result in evidence.divergences:
        for text in (result.pooled,) if gate.text is None else result.texts:
            if gate.text in (None, text.text):
                yield f"{result.model.rsplit('/', 1)[-1]}, {text.text}", text


def _kl(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    return (Measurement(of, text.kl.mean, text.kl.standard_error, key=of) for of, text in _texts(evidence, gate))


def _perplexity(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    return (Measurement(of, text.perplexity, key=of) for of, text in _texts(evidence, gate))


def _perplexity_increase(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """The paired increase of the loss, as the share by which it raises the perplexity."""
    for of, text in _texts(evidence, gate):
        share = text.perplexity / text.perplexity_reference - 1
        yield Measurement(of, 100 * share, 100 * (1 + share) * text.loss_increase.standard_error)


def _top1(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    for of, text in _texts(evidence, gate):
        yield Measurement(of, 100 * text.top1_agreement.mean, 100 * text.top1_agreement.standard_error, key=of)


def _shapes(evidence: Evidence, gate: Gate) -> Iterable[tuple[str, EngineLatency, ShapeLatency]]:
    """Of the last engine that was timed: the one that is released."""
    for engine in evidence.latencies[-1:]:
        for shape in engine.shapes:
            if gate.shape in (None, shape.name):
                yield f"{engine.engine} at {shape.name}", engine, shape


def _rate(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    return (Measurement(of, s.tokens_per_s, s.standard_error, key=s.name) for of, _, s in _shapes(evidence, gate))


def _rate_of_float(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    for ratio in evidence.ratios:
        if gate.shape not in (None, ratio.shape):
            continue
        of = f"{ratio.engine} against {ratio.baseline} at {ratio.shape}"
        doubt: Verdict | None = "too little evidence" if ratio.in_doubt else None
        yield Measurement(of, ratio.ratio, ratio.standard_error, doubt, ratio.in_doubt)


def _rate_of_bound(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """Decoded tokens/s as a share of what the GPU's memory bandwidth allows (engine.json's memory table)."""
    bounds = {name: engine.memory for name, engine in evidence.engines}
    for of, engine, shape in _shapes(evidence, gate):
        table = bounds.get(engine.engine)
        if table is None or table.decode_bound_tokens_per_s is None or shape.decode_tokens_per_s is None:
            continue
        yield Measurement(of, shape.decode_tokens_per_s / (shape.batch_size * table.decode_bound_tokens_per_s))


def _percentile(times: str, share: str) -> Callable[[Evidence, Gate], Iterable[Measurement]]:
    """Reads a percentile ("p90") of a shape's times ("ttft_ms"); a shape of one new token has no time between tokens."""

    def read(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
        for of, _, shape in _shapes(evidence, gate):
            quantiles = getattr(shape, times)
            if quantiles is not None:
                yield Measurement(of, getattr(quantiles, share), key=shape.name)

    return read


def _memory(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """Of the last engine, by its memory table: counted and bounded when it was built."""
    for name, engine in evidence.engines[-1:]:
        if engine.memory is not None:
            yield Measurement(f"{name} on {engine.memory.gpu}", engine.memory.needed_bytes / 1e9)


def _size(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    return (Measurement(name, count / 1e9) for name, count in evidence.sizes[-1:])


def _canaries(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """Answers that passed tests which contradict themselves."""
    for name, result in evidence.accuracies:
        for score in result.scores:
            canaries = score.canaries if isinstance(score, ProgramsScore) else None
            if canaries and gate.suite in (None, score.suite) and gate.language in (None, score.name):
                yield Measurement(f"{name}, {score.label}", len(canaries.passed), why=", ".join(canaries.passed))


def _sandbox(evidence: Evidence, gate: Gate) -> Iterable[Measurement]:
    """The level at which programs were run."""
    assert gate.level is not None
    for name, result in evidence.accuracies:
        level = result.sandbox.get("level")
        if level not in _SANDBOX_LEVELS:
            if any(isinstance(score, ProgramsScore) for score in result.scores):
                yield Measurement(
                    name, "no level", verdict="failed", why="the result does not say where programs were run"
                )
        else:
            enough = _SANDBOX_LEVELS.index(level) >= _SANDBOX_LEVELS.index(gate.level)
            yield Measurement(name, level, verdict="passed" if enough else "failed")


_MOST, _LEAST, _EITHER, _SUITES = ("at_most",), ("at_least",), ("at_most", "at_least"), ("suite", "language")

METRICS: dict[str, Metric] = {
    "accuracy-drop": Metric("points", "loss of pass@1 against the float model", _accuracy_drop, _MOST, _SUITES),
    "likelihood-drop": Metric("nats per token", "loss of solutions' log-likelihood", _likelihood_drop, _MOST, _SUITES),
    "pass-rate": Metric("%", "pass@1 of the released model", _pass_rate, _LEAST, _SUITES, relative=True),
    "kl": Metric("nats per token", "KL divergence from the float model", _kl, _MOST, ("text",), relative=True),
    "top1-agreement": Metric("%", "tokens with the same most likely token", _top1, _LEAST, ("text",), relative=True),
    "perplexity": Metric("", "perplexity of the released model", _perplexity, _MOST, ("text",), relative=True),
    "perplexity-increase": Metric("%", "increase of perplexity", _perplexity_increase, _MOST, ("text",)),
    "tokens-per-s": Metric("tokens/s", "rate of the whole call", _rate, _LEAST, ("shape",), relative=True),
    "speedup": Metric("times", "rate beside the float engine's, by turns", _rate_of_float, _LEAST, ("shape",)),
    "share-of-bound": Metric("of the bound", "decoding beside the memory's bound", _rate_of_bound, _LEAST, ("shape",)),
    **{
        f"{name}-{share}": Metric("ms", f"{what}, {words}", _percentile(times, share), _MOST, ("shape",), relative=True)
        for name, what, times in (
            ("ttft", "time to first token", "ttft_ms"),
            ("inter-token", "time between tokens", "inter_token_ms"),
        )
        for share, words in (("p50", "median"), ("p90", "90th percentile"), ("p99", "99th percentile"))
    },
    "memory": Metric("GB", "memory of the engine on its GPU", _memory, _MOST, relative=True),
    "size": Metric("GB", "size of the released directory", _size, _MOST, relative=True),
    "canaries": Metric("", "canaries that were passed, each a forgery", _canaries, _MOST, _SUITES),
    "sandbox": Metric("", "level at which programs were run", _sandbox, ("level",)),
}
