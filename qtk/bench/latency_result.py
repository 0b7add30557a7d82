"""What a latency measurement found: a table of each engine, and how many times as fast one is as another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

# Calls scatter where their 90th percentile is more than this many times the fastest call.
NOISY = 1.5
ONE_AFTER_THE_OTHER = "the engines were measured one after the other, not by turns"


class Quantiles(BaseModel):
    """Mean and percentiles, in milliseconds."""

    model_config = ConfigDict(frozen=True)
    mean: float
    p50: float
    p90: float
    p99: float

    @staticmethod
    def of(seconds: list[float]) -> Quantiles | None:
        """None for an empty list (a call of one output token has no step between tokens)."""
        if not seconds:
            return None
        ms = np.asarray(seconds) * 1e3
        p50, p90, p99 = (float(q) for q in np.percentile(ms, (50, 90, 99)))
        return Quantiles(mean=float(ms.mean()), p50=p50, p90=p90, p99=p99)


class ShapeLatency(BaseModel):
    """One shape's result. Times in milliseconds; rates in tokens per second over all rows.

    decode_tokens_per_s counts the steps after the first token only. ttft: time to first token, the prefill.
    call_seconds: every measured call, in order. standard_error: of tokens_per_s; None for a single call.
    """

    model_config = ConfigDict(frozen=True)
    input_len: int
    output_len: int
    batch_size: int
    runs: int
    tokens_per_s: float
    standard_error: float | None
    decode_tokens_per_s: float | None
    ttft_ms: Quantiles
    inter_token_ms: Quantiles | None
    call_seconds: list[float]

    @property
    def name(self) -> str:
        """The shape as --shapes writes it: "16/8"."""
        return f"{self.input_len}/{self.output_len}"

    @property
    def slowest_to_fastest(self) -> float:
        """The slowest call's time divided by the fastest's."""
        return max(self.call_seconds) / min(self.call_seconds)

    @property
    def noisy(self) -> bool:
        """Whether the calls scatter so much that their mean says little."""
        return float(np.percentile(self.call_seconds, 90)) > NOISY * min(self.call_seconds)


class EngineLatency(BaseModel):
    """One engine's figures, or those of an endpoint, of which little more is known than its name.

    first_call_ms: the first call of all, kept apart because some runtimes compile their kernels in it. compiled_before:
    whether the kernels were found compiled; None for runtimes that compile none at first use.
    """

    model_config = ConfigDict(frozen=True)
    engine: str
    backend: str
    gpu: str
    dtype: str
    accuracy_level: int | None
    lm_head_bits: int | None
    first_call_ms: float
    compiled_before: bool | None = None
    shapes: list[ShapeLatency]

    @property
    def first_call(self) -> str:
        """The first call in words."""
        state = {None: "", True: ", its kernels found compiled", False: ", with the compiling of its kernels"}
        return f"{self.first_call_ms:.0f} ms{state[self.compiled_before]}"

    def shape(self, name: str) -> ShapeLatency | None:
        """The figures of one shape ("16/8"), or None where it was not run."""
        return next((shape for shape in self.shapes if shape.name == name), None)


class SpeedRatio(BaseModel):
    """How many times as fast `engine` is as `baseline` at one shape.

    pairs: neighbouring calls, one of each engine, that it rests on; 0 where the engines were not measured by turns, and the
    ratio is that of their rates. standard_error: of the ratio; None for a single pair. in_doubt: why the ratio may be wrong,
    empty where nothing speaks against it.
    """

    model_config = ConfigDict(frozen=True)
    shape: str
    engine: str
    baseline: str
    ratio: float
    standard_error: float | None
    pairs: int
    in_doubt: str = ""


class LatencyReport(BaseModel):
    """The whole measurement, and the machine and settings of it.

    threads: those that the engines computed with on the processor. load_before, load_after: the system's load average over
    one minute, this process included. The four are None in results that were written before they were recorded. ratios: of
    every later engine to the first. warnings: what puts figures in doubt. failures: shapes that could not be measured, each
    with its reason.
    """

    model_config = ConfigDict(frozen=True)
    processor: str
    cores: int | None = None
    threads: int | None = None
    load_before: float | None = None
    load_after: float | None = None
    engines: list[EngineLatency]
    ratios: list[SpeedRatio] = []
    warnings: list[str] = []
    failures: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _of_one_engine(cls, content: Any) -> Any:
        """Results of one engine used to have its fields beside the machine's."""
        if not isinstance(content, dict) or "engines" in content or "shapes" not in content:
            return content
        machine = {name: content[name] for name in ("processor", "threads") if name in content}
        engine = {name: value for name, value in content.items() if name in EngineLatency.model_fields}
        return machine | {"engines": [engine]}


def paired_ratio(
    baseline: EngineLatency, engine: EngineLatency, shape: str, *, load: float | None, cores: int | None
) -> SpeedRatio | None:
    """The ratio over the pairs of calls at one shape; None where one of the two did not run it.

    The mean of ln(time of the baseline's call / time of the engine's call) over the pairs, so that what slows both calls of
    a pair cancels; the standard error is that of this mean, carried over to the ratio.
    """
    first, second = baseline.shape(shape), engine.shape(shape)
    if first is None or second is None:
        return None
    pairs = min(len(first.call_seconds), len(second.call_seconds))
    logs = np.log(np.array(first.call_seconds[:pairs]) / np.array(second.call_seconds[:pairs]))
    ratio = math.exp(float(logs.mean()))
    return SpeedRatio(
        shape=shape,
        engine=engine.engine,
        baseline=baseline.engine,
        ratio=ratio,
        standard_error=ratio * float(logs.std(ddof=1)) / pairs**0.5 if pairs > 1 else None,
        pairs=pairs,
        in_doubt="; ".join(
            scatter(made.engine, found, load, cores)
            for made, found in ((baseline, first), (engine, second))
            if found.noisy
        ),
    )


def unpaired_ratio(baseline: EngineLatency, engine: EngineLatency, shape: str) -> SpeedRatio | None:
    """The ratio of the rates of two engines that were not measured by turns, always in doubt; None where one of the two did
    not run the shape."""
    first, second = baseline.shape(shape), engine.shape(shape)
    if first is None or second is None:
        return None
    ratio = second.tokens_per_s / first.tokens_per_s
    error = None
    if first.standard_error is not None and second.standard_error is not None:
        error = ratio * math.hypot(
            first.standard_error / first.tokens_per_s, second.standard_error / second.tokens_per_s
        )
    return SpeedRatio(
        shape=shape,
        engine=engine.engine,
        baseline=baseline.engine,
        ratio=ratio,
        standard_error=error,
        pairs=0,
        in_doubt=ONE_AFTER_THE_OTHER,
    )


def scatter(engine: str, shape: ShapeLatency, load: float | None, cores: int | None) -> str:
    """What is said of an engine whose calls scatter, with its figures."""
    busy = "" if load is None else f", load {load:.1f} on {cores} cores"
    return f"{engine} is noisy: slowest call {shape.slowest_to_fastest:.1f} times the fastest{busy}"


def speed_ratios(reports: Sequence[LatencyReport]) -> list[SpeedRatio]:
    """Every ratio that the reports allow: those measured by turns, and of engines in different reports the ratio to the first
    engine of all, which is in doubt."""
    ratios = [ratio for report in reports for ratio in report.ratios]
    engines = [engine for report in reports for engine in report.engines]
    known = {(ratio.baseline, ratio.engine) for ratio in ratios}
    for engine in engines[1:]:
        baseline = engines[0]
        if engine.engine == baseline.engine or (baseline.engine, engine.engine) in known:
            continue
        found = (unpaired_ratio(baseline, engine, shape.name) for shape in baseline.shapes)
        ratios += [ratio for ratio in found if ratio is not None]
    return ratios
