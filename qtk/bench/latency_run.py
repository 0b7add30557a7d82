"""How fast an engine is: the rate of the published table, and the times that this rate hides.

tokens_per_s = batch x output tokens / mean seconds of the whole call, prefill included, end-of-sequence ignored, random
prompts; warm-up calls first, then at least `runs` calls and at least `seconds` seconds for each shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict

from qtk.bench.options import LatencyOptions, parse_shapes
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.session import EngineSession, Generation
from qtk.errors import InputError, listing
from qtk.machine import machine


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
    call_seconds: every measured call. standard_error: standard error of tokens_per_s.
    """

    model_config = ConfigDict(frozen=True)
    input_len: int
    output_len: int
    batch_size: int
    runs: int
    tokens_per_s: float
    standard_error: float
    decode_tokens_per_s: float | None
    ttft_ms: Quantiles
    inter_token_ms: Quantiles | None
    call_seconds: list[float]


class LatencyReport(BaseModel):
    """The whole measurement, and the machine and settings of it. first_call_ms: the first call of all, kept apart because
    some runtimes compile their kernels in it. compiled_before: whether the kernels were found compiled; None for runtimes
    that compile none at first use."""

    model_config = ConfigDict(frozen=True)
    engine: str
    backend: str
    gpu: str
    dtype: str
    accuracy_level: int | None
    lm_head_bits: int
    threads: int | None
    processor: str
    first_call_ms: float
    compiled_before: bool | None = None
    shapes: list[ShapeLatency]

    @property
    def first_call(self) -> str:
        """The first call in words."""
        state = {None: "", True: ", its kernels found compiled", False: ", with the compiling of its kernels"}
        return f"{self.first_call_ms:.0f} ms{state[self.compiled_before]}"


def measure(
    session: EngineSession,
    options: LatencyOptions,
    *,
    first_call_seconds: float | None = None,
    on_call: Callable[[str], None] = lambda detail: None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> LatencyReport:
    """Measures every shape of the options. InputError, before any run, for shapes that the engine cannot take.

    first_call_seconds: the time of the session's first call, where the caller has made it already. on_failure is given
    "16/8" and the exception of a shape that fails, and the other shapes go on; without it the exception ends the
    measurement.
    """
    shapes = parse_shapes(options.shapes)
    limits = session.limits
    reasons = [
        f"{entry}/{output}: {entry + output} tokens, the engine holds {limits.max_positions}"
        for entry, output in shapes
        if entry + output > limits.max_positions
    ]
    if options.batch_size > limits.max_batch:
        reasons.append(f"batch {options.batch_size}, the engine takes {limits.max_batch}")
    if reasons:
        raise InputError(f"{session.directory} cannot run these shapes:\n{listing(reasons)}")
    random = np.random.default_rng(options.seed)
    if first_call_seconds is None:
        first_call_seconds = time_first_call(session, shapes[0], options.batch_size, random)
    measured = []
    for shape in shapes:
        try:
            measured.append(_measure_shape(session, random, shape, options, on_call))
        except Exception as error:
            if on_failure is None:
                raise
            on_failure(f"{shape[0]}/{shape[1]}", error)
    description = session.description
    return LatencyReport(
        engine=session.directory.name,
        backend=description.backend,
        gpu=description.gpu,
        dtype=description.dtype,
        accuracy_level=description.accuracy_level,
        lm_head_bits=description.lm_head_bits,
        threads=options.threads,
        processor=machine().processor,
        first_call_ms=first_call_seconds * 1e3,
        compiled_before=session.compiled_before,
        shapes=measured,
    )


def time_first_call(
    session: EngineSession, shape: tuple[int, int], batch: int, random: np.random.Generator | None = None
) -> float:
    """Seconds of one call of (prompt, output) tokens. In a fresh session, kernels are compiled in this call."""
    begin = time.perf_counter()
    _call(session, random or np.random.default_rng(0), shape, batch)
    return time.perf_counter() - begin


def _measure_shape(
    session: EngineSession,
    random: np.random.Generator,
    shape: tuple[int, int],
    options: LatencyOptions,
    on_call: Callable[[str], None],
) -> ShapeLatency:
    name = f"{shape[0]}/{shape[1]}"
    for _ in range(options.warmups):
        _call(session, random, shape, options.batch_size)
    calls: list[Generation] = []
    begin = time.perf_counter()
    while len(calls) < options.runs or time.perf_counter() - begin < options.seconds:
        calls.append(_call(session, random, shape, options.batch_size))
        on_call(f"{name}: {len(calls)} calls")
    seconds = np.array([call.seconds for call in calls])
    steps = [step for call in calls for step in call.token_seconds]
    produced = options.batch_size * shape[1]
    rate = produced / float(seconds.mean())
    spread = float(seconds.std(ddof=1)) / float(seconds.mean()) / len(calls) ** 0.5 if len(calls) > 1 else 0.0
    ttft = Quantiles.of([call.prefill_seconds for call in calls])
    assert ttft is not None
    return ShapeLatency(
        input_len=shape[0],
        output_len=shape[1],
        batch_size=options.batch_size,
        runs=len(calls),
        tokens_per_s=rate,
        standard_error=rate * spread,
        decode_tokens_per_s=options.batch_size * len(steps) / sum(steps) if steps else None,
        ttft_ms=ttft,
        inter_token_ms=Quantiles.of(steps),
        call_seconds=[round(float(s), 6) for s in seconds],
    )


def _call(session: EngineSession, random: np.random.Generator, shape: tuple[int, int], batch: int) -> Generation:
    ids = session.prompt_ids
    prompts = random.choice(session.vocab_size if ids is None else ids, (batch, shape[0])).tolist()
    return session.generate(prompts, shape[1], Decoding(ignore_eos=True))
