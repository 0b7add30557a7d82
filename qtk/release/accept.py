"""Accepts an engine on the machine it is for: every check that needs that machine, and the published shapes.

An engine that was compiled without a GPU has never been run. `accept` runs it once and records the results, so that each
"untested" becomes a figure: the loop's two ways to the same logits, batches, repeatability, limits, distance from the
checkpoint that the engine was built from, and latency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

import qtk
from qtk.bench.divergence_result import DivergenceResult
from qtk.bench.divergence_run import measure_divergence
from qtk.bench.latency_result import LatencyReport
from qtk.bench.latency_run import measure, time_first_call
from qtk.bench.options import (
    LOGIT_TOLERANCE,
    ROUNDED_CHOICE_TOLERANCE,
    ROUNDED_LOGIT_TOLERANCE,
    AcceptOptions,
    DivergenceOptions,
    LatencyOptions,
    parse_shapes,
)
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest
from qtk.engines.description import EngineDescription
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.session import DecoderSession, EngineSession, open_session
from qtk.engines.sessions.text import generate_text
from qtk.errors import InputError
from qtk.machine import machine
from qtk.progress import Progress

_TO_THE_END = Decoding(ignore_eos=True)
_TEXT = "def fibonacci(n):"
_NO_LOGITS = "the engine's runtime gives tokens, not logits"


class Check(BaseModel):
    """One check: its figure (None where there is none), whether it passed, and what it means."""

    model_config = ConfigDict(frozen=True)
    name: str
    passed: bool
    figure: float | None
    meaning: str


class Acceptance(BaseModel):
    """The record. `engine_manifest_sha256` ties it to one engine, `machine` to one machine. checks_not_run: name -> reason.
    shapes_not_run: the shapes that the engine's limits are too small for. verdict: failed where any check failed, else
    incomplete where a shape was not run, else passed. first_call_ms is measured before all checks, so it includes the
    compiling of kernels at first use; compiled_before: whether these were found compiled (None for runtimes that compile
    none)."""

    model_config = ConfigDict(frozen=True)
    qtk_version: str
    engine: str
    engine_manifest_sha256: str | None
    backend: str
    gpu: str
    versions: dict[str, str]
    machine: dict[str, object]
    verdict: Literal["passed", "failed", "incomplete"]
    first_call_ms: float | None
    compiled_before: bool | None
    checks: list[Check]
    checks_not_run: dict[str, str]
    shapes_not_run: list[str]
    latency: LatencyReport | None
    divergence: DivergenceResult | None


class _Record:
    """The results so far; a check that fails does not stop the others."""

    def __init__(self, progress: Progress) -> None:
        self.checks: list[Check] = []
        self.not_run: dict[str, str] = {}
        self._progress = progress

    def run(self, name: str, meaning: str, check: Callable[[], float], most: float) -> None:
        try:
            figure = check()
        except Exception as error:  # whatever the runtime raises is a result
            self.failed(name, meaning, error)
        else:
            passed = bool(figure <= most)
            self.checks.append(Check(name=name, passed=passed, figure=figure, meaning=f"{meaning} (at most {most:g})"))
        self._progress.advance(1, name)

    def failed(self, name: str, meaning: str, error: Exception) -> None:
        reason = f"{meaning}: {type(error).__name__}: {error}"
        self.checks.append(Check(name=name, passed=False, figure=None, meaning=reason))


def accept(engine: Path, options: AcceptOptions) -> Acceptance:
    """Runs everything on an engine directory. MachineError when the engine cannot run here."""
    with open_session(engine, options.threads) as session:
        return accept_session(session, options)


def accept_session(session: EngineSession, options: AcceptOptions) -> Acceptance:
    """Runs everything on a session that has not been used yet. A check that fails does not stop the others."""
    checks = len(_TOKEN_CHECKS) + len(_LOGIT_CHECKS) + 5
    with Progress("accept", checks, "checks") as progress:
        record = _Record(progress)
        fitting, not_run = _fitting(session, options)
        first_call = _first_call(session, fitting, record)
        _run_checks(session, options, record)
        divergence = _divergence(session, options, record)
        latency = _latency(session, options, fitting, first_call, record)
        # Last, when every buffer has been used.
        _memory(session, record)
    description, manifest = session.description, session.directory / MANIFEST_NAME
    failed = any(not check.passed for check in record.checks)
    return Acceptance(
        qtk_version=qtk.__version__,
        engine=session.directory.name,
        engine_manifest_sha256=file_digest(manifest).sha256 if manifest.is_file() else None,
        backend=description.backend,
        gpu=description.gpu,
        versions=description.versions,
        machine=machine().as_dict(),
        verdict="failed" if failed else "incomplete" if not_run else "passed",
        first_call_ms=None if first_call is None else first_call * 1e3,
        compiled_before=session.compiled_before,
        checks=record.checks,
        checks_not_run=record.not_run,
        shapes_not_run=not_run,
        latency=latency,
        divergence=divergence,
    )


def _first_call(session: EngineSession, fitting: Sequence[tuple[int, int]], record: _Record) -> float | None:
    """Seconds of the first call of all; None where it failed."""
    entry, output = fitting[0] if fitting else (1, 1)
    try:
        return time_first_call(session, (entry, output), 1)
    except Exception as error:
        record.failed("first call", f"{entry} tokens in, {output} out", error)
        return None


def _run_checks(session: EngineSession, options: AcceptOptions, record: _Record) -> None:
    for name, meaning, token_check in _TOKEN_CHECKS:
        record.run(name, meaning, functools.partial(token_check, session), 0)
    try:
        record.run("text", "differences between text that streams and text that is returned", _text_of(session), 0)
    except InputError as error:
        record.not_run["text"] = str(error)
    for name, meaning, logit_check, rounded_most in _LOGIT_CHECKS:
        most = rounded_most if rounds_activations(session.description) else LOGIT_TOLERANCE
        most = most if options.tolerance is None else options.tolerance
        if isinstance(session, DecoderSession):
            record.run(name, meaning, functools.partial(logit_check, session), most)
        else:
            record.not_run[name] = _NO_LOGITS


def rounds_activations(engine: EngineDescription) -> bool:
    """Whether ONNX Runtime rounds activations to 8 bits, so that logits which should be alike are so less closely."""
    return engine.quantization is not None and engine.accuracy_level == 4


def _divergence(session: EngineSession, options: AcceptOptions, record: _Record) -> DivergenceResult | None:
    reference = options.reference
    if reference is None:
        record.not_run["divergence"] = "no --reference was given"
    elif not isinstance(session, DecoderSession):
        record.not_run["divergence"] = _NO_LOGITS
    else:
        decoder, measured = session, list[DivergenceResult]()
        rows = DivergenceOptions(rows=4, seq_len=min(512, session.limits.max_positions), threads=options.threads)

        def kl() -> float:
            measured.append(measure_divergence(decoder, reference, rows))
            return measured[0].pooled.kl.mean

        record.run("divergence", "KL from the checkpoint, nats a token", kl, options.max_kl)
        return measured[0] if measured else None
    return None


def _latency(
    session: EngineSession,
    options: AcceptOptions,
    fitting: Sequence[tuple[int, int]],
    first_call: float | None,
    record: _Record,
) -> LatencyReport | None:
    if not fitting or first_call is None:
        return None
    shapes = ",".join(f"{entry}/{output}" for entry, output in fitting)
    latency_options = LatencyOptions(shapes=shapes, seconds=options.seconds, threads=options.threads)

    def failed(shape: str, error: Exception) -> None:
        record.failed(f"latency {shape}", "the shape's calls", error)

    return measure([session], latency_options, first_call_seconds=first_call, on_failure=failed)


def _memory(session: EngineSession, record: _Record) -> None:
    table, used = session.description.memory, session.memory_bytes()
    if table is None or used is None:
        record.not_run["memory"] = (
            "the runtime does not report the memory it takes" if table else "the engine has no memory table"
        )
        return
    record.run("memory", "device memory taken, as a share of the table's", lambda: used / table.needed_bytes, 1.0)


def _prompt(session: EngineSession, length: int, seed: int) -> list[int]:
    longest = max(1, min(length, session.limits.max_input_len))
    ids = session.prompt_ids
    return np.random.default_rng(seed).choice(session.vocab_size if ids is None else ids, longest).tolist()


def _repeatability(session: EngineSession) -> float:
    """Tokens that differ between two runs of one greedy call."""
    new = min(32, session.limits.max_output_len)
    first, second = (session.generate([_prompt(session, 40, 1)], new, _TO_THE_END).tokens[0] for _ in range(2))
    return float(sum(a != b for a, b in zip(first, second, strict=True)))


def _decode_against_scoring(session: DecoderSession) -> float:
    """The most that a token of step-by-step decoding lies below the best logit when the row is scored as a whole."""
    prompt = _prompt(session, 40, 2)
    new = min(32, session.limits.max_positions - len(prompt))
    tokens = session.generate([prompt], new, _TO_THE_END).tokens[0]
    logits = session.logits([prompt + tokens[:-1]])[0, len(prompt) - 1 :]
    if not np.isfinite(logits).all():
        return float("inf")
    return float((logits.max(-1) - logits[np.arange(len(tokens)), tokens]).max())


def _batch(session: DecoderSession) -> float:
    """The most that a row's logits change when a row of another length runs beside it (0 for an engine of one row)."""
    if session.limits.max_batch < 2:
        return 0.0
    rows = [_prompt(session, 48, 3), _prompt(session, 19, 4)]
    together = session.logits(rows)
    return max(float(np.abs(session.logits([row])[0] - together[i, : len(row)]).max()) for i, row in enumerate(rows))


def _batched_decoding(session: DecoderSession) -> float:
    """The most that a token of rows decoded together lies below the best logit when each row is scored alone."""
    if session.limits.max_batch < 2:
        return 0.0
    rows = [_prompt(session, 29, 6), _prompt(session, 11, 7)]
    new = max(1, min(16, session.limits.max_positions - max(map(len, rows))))
    lost = 0.0
    for row, tokens in zip(rows, session.generate(rows, new, _TO_THE_END).tokens, strict=True):
        logits = session.logits([row + tokens[:-1]])[0, len(row) - 1 :]
        lost = max(lost, float((logits.max(-1) - logits[np.arange(len(tokens)), tokens]).max()))
    return lost


def _text_of(session: EngineSession) -> Callable[[], float]:
    """The check of text in, text out. InputError for an engine without a tokenizer."""
    tokenizer = session.tokenizer

    def check() -> float:
        pieces: list[str] = []
        most = max(1, min(16, session.limits.max_positions - len(tokenizer.encode(_TEXT)) - 1))
        row = generate_text(session, [_TEXT], GenerateOptions(max_new_tokens=most), on_text=pieces.append).rows[0]
        return float(("".join(pieces) != row.text) + (row.text != tokenizer.decode(row.tokens)))

    return check


def _whole_length(session: EngineSession) -> float:
    """Tokens missing from a call that fills the engine to its last position; a longer one must be refused."""
    prompt = _prompt(session, session.limits.max_input_len, 5)
    new = session.limits.max_positions - len(prompt)
    tokens = session.generate([prompt], new, _TO_THE_END).tokens[0]
    try:
        session.generate([prompt], new + 1, _TO_THE_END)
    except InputError:
        return float(new - len(tokens))
    return float("inf")


_TOKEN_CHECKS: tuple[tuple[str, str, Callable[[EngineSession], float]], ...] = (
    ("repeatability", "tokens that differ between two runs of one call", _repeatability),
    ("whole length", "tokens missing when the engine is filled to its limit", _whole_length),
)
# name, what the figure is, the check, and the bound of an engine that rounds activations to 8 bits
_LOGIT_CHECKS: tuple[tuple[str, str, Callable[[DecoderSession], float], float], ...] = (
    (
        "decode against scoring",
        "largest difference of a logit: of a token chosen step by step, to the best one when the row is scored as a whole",
        _decode_against_scoring,
        ROUNDED_CHOICE_TOLERANCE,
    ),
    (
        "batch",
        "largest difference of a logit: of a row alone, to the same row beside a longer one",
        _batch,
        ROUNDED_LOGIT_TOLERANCE,
    ),
    (
        "batched decoding",
        "largest difference of a logit: of a token chosen in a batch, to the best one when its row is scored alone",
        _batched_decoding,
        ROUNDED_CHOICE_TOLERANCE,
    ),
)


def _fitting(session: EngineSession, options: AcceptOptions) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes that the engine's limits take, and the names of the others."""
    shapes = parse_shapes(options.shapes)
    fits = [shape for shape in shapes if sum(shape) <= session.limits.max_positions]
    return fits, [f"{entry}/{output}" for entry, output in shapes if (entry, output) not in fits]
