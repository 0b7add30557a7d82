"""How fast engines are: the rate of the published table, the times that this rate hides, and the ratio of two engines.

tokens_per_s = batch x output tokens / mean seconds of the whole call, prefill included, end-of-sequence ignored, random
prompts. Several engines are called by turns, one call of each, so that whatever else the machine does meets all alike.
Each shape gets `seconds` seconds for each engine, warm-up calls aside, and never fewer than `runs` calls of each.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtk.bench.latency_result import (
    LatencyReport,
    Quantiles,
    ShapeLatency,
    paired_ratio,
    scatter,
    unpaired_ratio,
)
from qtk.bench.options import LatencyOptions, parse_shapes
from qtk.bench.timed import Shape, Timed, TimedCall, TimedEngine, shape_name
from qtk.engines.sessions.session import EngineSession, open_session, read_built
from qtk.errors import InputError
from qtk.machine import available_memory, machine, threads_for
from qtk.progress import Progress, warn

# A runtime's threads spin for a moment after a call; they must not take the next engine's cores.
_REST_SECONDS = 0.02


@dataclass(frozen=True)
class CallDone:
    """What is told after each call: in words what was done, the seconds so far, and those that are expected yet."""

    detail: str
    elapsed: float
    left: float


def measure_engines(engines: Sequence[Path], options: LatencyOptions) -> LatencyReport:
    """Opens engine directories and measures them by turns, with progress and its ETA on stderr, and its warnings there too.

    Engines that do not fit the memory together are measured one after the other, and their ratios are in doubt. InputError
    for directories that share a name, which figures could not be told apart by, and as of `measure`; MachineError where an
    engine cannot run here.
    """
    names = [engine.resolve().name for engine in engines]
    if len(set(names)) < len(names):
        raise InputError(f"Engines to be compared need names of their own, not {', '.join(names)}.")
    with Progress(f"latency of {', '.join(names)}", None, "s") as progress:

        def told(call: CallDone) -> None:
            progress.reach(call.elapsed, call.elapsed + call.left, call.detail)

        if _fit_together(engines):
            with contextlib.ExitStack() as stack:
                sessions = [stack.enter_context(open_session(engine, options.threads)) for engine in engines]
                report = measure(sessions, options, on_call=told)
        else:
            report = _one_after_the_other(engines, options, told)
    for warning in report.warnings:
        warn(warning)
    return report


def engine_roles(engines: Sequence[Path]) -> dict[str, Path]:
    """The engines of one measurement by the role that its manifest gives them."""
    return {"engine" if number == 1 else f"engine {number}": path for number, path in enumerate(engines, start=1)}


def measure(
    sessions: Sequence[EngineSession],
    options: LatencyOptions,
    *,
    first_call_seconds: float | None = None,
    on_call: Callable[[CallDone], None] = lambda call: None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> LatencyReport:
    """`measure_timed` of engines' sessions."""
    return measure_timed(
        [TimedEngine(session) for session in sessions],
        options,
        first_call_seconds=first_call_seconds,
        on_call=on_call,
        on_failure=on_failure,
    )


def measure_timed(
    timed: Sequence[Timed],
    options: LatencyOptions,
    *,
    first_call_seconds: float | None = None,
    on_call: Callable[[CallDone], None] = lambda call: None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> LatencyReport:
    """Measures every shape of the options on everything that is timed, by turns. InputError, before any run, for shapes that
    one of them cannot take.

    first_call_seconds: the time of the only session's first call, where the caller has made it already. on_failure is given
    "16/8" and the exception of a shape that fails, and the other shapes go on; without it the exception ends the
    measurement.
    """
    shapes = parse_shapes(options.shapes)
    for one in timed:
        one.require_fit(shapes, options.batch_size)
    load_before = _load()
    turns = _Turns(timed, shapes, options, on_call)
    first_calls = turns.first_calls() if first_call_seconds is None else [first_call_seconds]
    measured: list[list[ShapeLatency]] = []
    for shape in shapes:
        try:
            measured.append([_shape_latency(shape, options.batch_size, calls) for calls in turns.measure(shape)])
        except Exception as error:
            if on_failure is None:
                raise
            on_failure(shape_name(shape), error)
    engines = [
        one.figures(seconds, [of_shape[index] for of_shape in measured])
        for index, (one, seconds) in enumerate(zip(timed, first_calls, strict=True))
    ]
    load, cores = _load(), machine().cores
    ratios = (
        paired_ratio(engines[0], engine, shape_name(shape), load=load, cores=cores)
        for shape in shapes
        for engine in engines[1:]
    )
    return LatencyReport(
        processor=machine().processor,
        cores=cores,
        threads=threads_for(options.threads),
        load_before=load_before,
        load_after=load,
        engines=engines,
        ratios=[ratio for ratio in ratios if ratio is not None],
        warnings=[
            f"{shape.name}: {scatter(engine.engine, shape, load, cores)}"
            for engine in engines
            for shape in engine.shapes
            if shape.noisy
        ],
    )


def time_first_call(session: EngineSession, shape: Shape, batch: int) -> float:
    """Seconds of one call of (prompt, output) tokens. In a fresh session, kernels are compiled in this call."""
    begin = time.perf_counter()
    TimedEngine(session).call(np.random.default_rng(0), shape, batch)
    return time.perf_counter() - begin


class _Turns:
    """Calls what is timed by turns, and tells after each call how long all that is left is expected to take."""

    def __init__(
        self,
        timed: Sequence[Timed],
        shapes: Sequence[Shape],
        options: LatencyOptions,
        on_call: Callable[[CallDone], None],
    ) -> None:
        self._timed, self._options, self._on_call = timed, options, on_call
        self._to_do = list(shapes)
        # The same seed for each, so that engines of one vocabulary get the same prompts.
        self._random = [np.random.default_rng(options.seed) for _ in timed]
        self._begin = time.perf_counter()
        # The latest call of each, from which the time of calls of other shapes is estimated.
        self._latest: list[tuple[Shape, TimedCall] | None] = [None for _ in timed]

    def first_calls(self) -> list[float]:
        """Seconds of the first call of each, of the first shape."""
        seconds = []
        for index in range(len(self._timed)):
            begin = time.perf_counter()
            self._turn(index, self._to_do[0], "first calls", lambda: 0.0)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def measure(self, shape: Shape) -> list[list[TimedCall]]:
        """The measured calls of each at one shape: as many as the time allows, the same number of each."""
        options, name, count = self._options, shape_name(shape), len(self._timed)
        self._to_do.remove(shape)
        for warmup in range(options.warmups):
            for index in range(count):
                warmups = options.warmups - warmup - (index + 1) / count
                self._turn(index, shape, f"{name}: warm-up", functools.partial(self._shape_seconds, shape, warmups))
        calls: list[list[TimedCall]] = [[] for _ in self._timed]
        begin, rounds, last = time.perf_counter(), 0, False
        while not last:
            for index in range(count):
                left = functools.partial(self._seconds_left, shape, rounds + (index + 1) / count, begin)
                calls[index].append(self._turn(index, shape, f"{name}: {_calls(rounds + 1, count)}", left))
            rounds += 1
            elapsed = time.perf_counter() - begin
            last = rounds >= options.runs and elapsed + elapsed / rounds > options.seconds * count
        return calls

    def _turn(self, index: int, shape: Shape, detail: str, left_of_shape: Callable[[], float]) -> TimedCall:
        if len(self._timed) > 1:
            time.sleep(_REST_SECONDS)
        call = self._timed[index].call(self._random[index], shape, self._options.batch_size)
        self._latest[index] = shape, call
        left = left_of_shape() + sum(self._shape_seconds(later, self._options.warmups) for later in self._to_do)
        self._on_call(CallDone(detail, time.perf_counter() - self._begin, left))
        return call

    def _round_seconds(self, shape: Shape) -> float:
        """What one call of each session is expected to take: the prompt's time grows with the prompt, the rest with the
        tokens after the first."""
        total = 0.0
        for latest in self._latest:
            if latest is None:
                continue
            (entry, _), call = latest
            step = sum(call.token_seconds) / len(call.token_seconds) if call.token_seconds else 0.0
            total += call.prefill_seconds * shape[0] / entry + step * (shape[1] - 1)
        return total

    def _shape_seconds(self, shape: Shape, warmups: float) -> float:
        """Of a shape of which so many rounds of warm-ups and all measured calls are left."""
        budget = self._options.seconds * len(self._timed)
        one = self._round_seconds(shape)
        return warmups * one + max(budget, self._options.runs * one)

    def _seconds_left(self, shape: Shape, rounds: float, begin: float) -> float:
        """Of a shape of which so many rounds are done, the first of which began at `begin`."""
        budget = self._options.seconds * len(self._timed) - (time.perf_counter() - begin)
        return max(0.0, budget, (self._options.runs - rounds) * self._round_seconds(shape))


def _calls(rounds: int, engines: int) -> str:
    return f"{rounds} call{'' if rounds == 1 else 's'}{' of each' if engines > 1 else ''}"


def _one_after_the_other(
    engines: Sequence[Path], options: LatencyOptions, on_call: Callable[[CallDone], None]
) -> LatencyReport:
    """Each engine by itself, in one report; its ratios say so."""
    reports = []
    for engine in engines:
        with open_session(engine, options.threads) as session:
            reports.append(measure([session], options, on_call=on_call))
    measured = [engine for report in reports for engine in report.engines]
    ratios = (
        unpaired_ratio(measured[0], engine, shape_name(shape))
        for shape in parse_shapes(options.shapes)
        for engine in measured[1:]
    )
    return reports[0].model_copy(
        update={
            "load_after": reports[-1].load_after,
            "engines": measured,
            "ratios": [ratio for ratio in ratios if ratio is not None],
            "warnings": [
                "the engines do not fit the memory together, so they were measured one after the other",
                *(warning for report in reports for warning in report.warnings),
            ],
        }
    )


def _fit_together(engines: Sequence[Path]) -> bool:
    """Whether all engines can be held open at once, as far as their descriptions tell."""
    if len(engines) == 1:
        return True
    described = [read_built(engine) for engine in engines]
    on_gpus = [about.memory for about in described if about.memory is not None and about.memory.available_bytes]
    if on_gpus:
        return sum(table.needed_bytes for table in on_gpus) <= min(table.available_bytes or 0 for table in on_gpus)
    return sum(stage.bytes for about in described for stage in about.stages) <= available_memory()


def _shape_latency(shape: Shape, batch: int, calls: Sequence[TimedCall]) -> ShapeLatency:
    seconds = np.array([call.seconds for call in calls])
    steps = [step for call in calls for step in call.token_seconds]
    rate = sum(call.tokens for call in calls) / float(seconds.sum())
    spread = float(seconds.std(ddof=1)) / float(seconds.mean()) / len(calls) ** 0.5 if len(calls) > 1 else None
    ttft = Quantiles.of([call.prefill_seconds for call in calls])
    assert ttft is not None
    return ShapeLatency(
        input_len=shape[0],
        output_len=shape[1],
        batch_size=batch,
        runs=len(calls),
        tokens_per_s=rate,
        standard_error=None if spread is None else rate * spread,
        decode_tokens_per_s=batch * len(steps) / sum(steps) if steps else None,
        ttft_ms=ttft,
        inter_token_ms=Quantiles.of(steps),
        call_seconds=[round(float(s), 6) for s in seconds],
    )


def _load() -> float:
    """The load average over the last minute."""
    return round(os.getloadavg()[0], 2)
