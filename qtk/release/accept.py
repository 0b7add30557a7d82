"""Acceptance of an engine on the machine it is for: every check that needs that machine, and the published shapes.

What was compiled without a GPU was never run. This runs it, once, and records what came out, so that each "untested"
becomes a result: the loop's two ways to the same logits, batches, repeatability, limits, distance from the checkpoint
the engine was built from, and latency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import qtk
from qtk.bench.divergence import DivergenceOptions, DivergenceResult, measure_divergence
from qtk.bench.latency import LatencyOptions, LatencyReport, measure, parse_shapes, time_first_call
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest
from qtk.engines.sessions.session import DecoderSession, EngineSession, open_session
from qtk.engines.sessions.text import GenerateOptions, generate_text
from qtk.errors import InputError
from qtk.machine import machine
from qtk.progress import Progress

_TEXT = "def fibonacci(n):"
_NO_LOGITS = "the engine's runtime gives tokens, not logits"


class AcceptOptions(BaseModel):
    """What `qtk accept` runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: str = Field(
        "16/8,64/32,256/128,1024/512", description="Shapes of the latency table; those that fit are run."
    )
    seconds: float = Field(10.0, ge=0, description="Least time a shape, in seconds.")
    reference: Path | None = Field(
        None, description="The checkpoint the engine was built from, to measure the KL to it."
    )
    max_kl: float = Field(0.02, gt=0, description="The largest KL to that checkpoint that passes, nats a token.")
    tolerance: float = Field(
        0.25, gt=0, description="How far logits may lie apart that two ways of computing should give alike."
    )
    threads: int | None = Field(None, ge=1, description="Threads of the processor. Default: all that may be used.")


class Check(BaseModel):
    """One check: its figure (None where there is none), whether it passed, and what it means."""

    model_config = ConfigDict(frozen=True)
    name: str
    passed: bool
    figure: float | None
    meaning: str


class Acceptance(BaseModel):
    """The record. `engine_manifest_sha256` ties it to one engine; `machine` says what it ran on. checks_not_run: name -> why;
    shapes_not_run: those that the engine's limits are too small for. verdict: failed by any check, else incomplete where a
    shape was not run, else passed. first_call_ms comes before all checks, so it holds what is compiled at first use;
    compiled_before: whether that was found compiled already (None where nothing is)."""

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
    """What has been found so far; a check that fails does not stop the others."""

    def __init__(self, progress: Progress) -> None:
        self.checks: list[Check] = []
        self.not_run: dict[str, str] = {}
        self._progress = progress

    def run(self, name: str, meaning: str, check: Callable[[], float], most: float) -> None:
        try:
            figure = check()
        except Exception as error:  # whatever the runtime raises is the finding
            self.failed(name, meaning, error)
        else:
            passed = bool(figure <= most)
            self.checks.append(Check(name=name, passed=passed, figure=figure, meaning=f"{meaning} (at most {most:g})"))
        self._progress.advance(1, name)

    def failed(self, name: str, meaning: str, error: Exception) -> None:
        said = f"{meaning}: {type(error).__name__}: {error}"
        self.checks.append(Check(name=name, passed=False, figure=None, meaning=said))


def accept(engine: Path, options: AcceptOptions) -> Acceptance:
    """Runs everything. A check that fails does not stop the others. MachineError when the engine cannot run here."""
    checks = len(_TOKEN_CHECKS) + len(_LOGIT_CHECKS) + 5
    with open_session(engine, options.threads) as session, Progress("accept", checks, "checks") as progress:
        record = _Record(progress)
        fitting, not_run = _fitting(session, options)
        first_call = _first_call(session, fitting, record)
        _run_checks(session, options, record)
        divergence = _divergence(session, options, record)
        latency = _latency(session, options, fitting, first_call, record)
        # The last of all, when every buffer has been used.
        _memory(session, record)
        compiled_before, description = session.compiled_before, session.description
    manifest = engine / MANIFEST_NAME
    failed = any(not check.passed for check in record.checks)
    return Acceptance(
        qtk_version=qtk.__version__,
        engine=engine.name,
        engine_manifest_sha256=file_digest(manifest).sha256 if manifest.is_file() else None,
        backend=description.backend,
        gpu=description.gpu,
        versions=description.versions,
        machine=machine().as_dict(),
        verdict="failed" if failed else "incomplete" if not_run else "passed",
        first_call_ms=None if first_call is None else first_call * 1e3,
        compiled_before=compiled_before,
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
        record.run(name, meaning, functools.partial(token_check, session), options.tolerance)
    try:
        record.run("text", "differences between text that streams and text that is returned", _text_of(session), 0)
    except InputError as error:
        record.not_run["text"] = str(error)
    for name, meaning, logit_check in _LOGIT_CHECKS:
        if isinstance(session, DecoderSession):
            record.run(name, meaning, functools.partial(logit_check, session), options.tolerance)
        else:
            record.not_run[name] = _NO_LOGITS


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
    asked = LatencyOptions(shapes=shapes, seconds=options.seconds, threads=options.threads)

    def failed(shape: str, error: Exception) -> None:
        record.failed(f"latency {shape}", "the shape's calls", error)

    return measure(session, asked, first_call_seconds=first_call, on_failure=failed)


def _memory(session: EngineSession, record: _Record) -> None:
    table, used = session.description.memory, session.memory_bytes()
    if table is None or used is None:
        record.not_run["memory"] = (
            "the runtime does not tell what it takes" if table else "the engine has no memory table"
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
    first, second = (session.generate([_prompt(session, 40, 1)], new, ignore_eos=True).tokens[0] for _ in range(2))
    return float(sum(a != b for a, b in zip(first, second, strict=True)))


def _decode_against_scoring(session: DecoderSession) -> float:
    """How far below the best logit the tokens of step-by-step decoding lie when the row is scored as a whole."""
    prompt = _prompt(session, 40, 2)
    new = min(32, session.limits.max_positions - len(prompt))
    tokens = session.generate([prompt], new, ignore_eos=True).tokens[0]
    logits = session.logits([prompt + tokens[:-1]])[0, len(prompt) - 1 :]
    if not np.isfinite(logits).all():
        return float("inf")
    return float((logits.max(-1) - logits[np.arange(len(tokens)), tokens]).max())


def _batch(session: DecoderSession) -> float:
    """How far a row's last logits move when an unequal row runs beside it (0 for an engine of one row)."""
    if session.limits.max_batch < 2:
        return 0.0
    rows = [_prompt(session, 48, 3), _prompt(session, 19, 4)]
    together = session.logits(rows)
    return max(float(np.abs(session.logits([row])[0] - together[i, : len(row)]).max()) for i, row in enumerate(rows))


def _batched_decoding(session: DecoderSession) -> float:
    """How far below the best logit the tokens of rows that were decoded together lie when each row is scored alone."""
    if session.limits.max_batch < 2:
        return 0.0
    rows = [_prompt(session, 29, 6), _prompt(session, 11, 7)]
    new = max(1, min(16, session.limits.max_positions - max(map(len, rows))))
    lost = 0.0
    for row, tokens in zip(rows, session.generate(rows, new, ignore_eos=True).tokens, strict=True):
        logits = session.logits([row + tokens[:-1]])[0, len(row) - 1 :]
        lost = max(lost, float((logits.max(-1) - logits[np.arange(len(tokens)), tokens]).max()))
    return lost


def _text_of(session: EngineSession) -> Callable[[], float]:
    """The check of text in, text out. InputError for an engine without a tokenizer."""
    tokenizer = session.tokenizer

    def check() -> float:
        pieces: list[str] = []
        most = max(1, min(16, session.limits.max_positions - len(tokenizer.encode(_TEXT)) - 1))
        made = generate_text(session, [_TEXT], GenerateOptions(max_new_tokens=most), on_text=pieces.append).rows[0]
        return float(("".join(pieces) != made.text) + (made.text != tokenizer.decode(made.tokens)))

    return check


def _whole_length(session: EngineSession) -> float:
    """Tokens missing from a call that fills the engine to its last position; a longer one must be refused."""
    prompt = _prompt(session, session.limits.max_input_len, 5)
    new = session.limits.max_positions - len(prompt)
    made = session.generate([prompt], new, ignore_eos=True).tokens[0]
    try:
        session.generate([prompt], new + 1, ignore_eos=True)
    except InputError:
        return float(new - len(made))
    return float("inf")


_TOKEN_CHECKS: tuple[tuple[str, str, Callable[[EngineSession], float]], ...] = (
    ("repeatability", "tokens that differ between two runs of one call", _repeatability),
    ("whole length", "tokens missing when the engine is filled to its limit", _whole_length),
)
_LOGIT_CHECKS: tuple[tuple[str, str, Callable[[DecoderSession], float]], ...] = (
    ("decode against scoring", "logits lost by decoding step by step", _decode_against_scoring),
    ("batch", "logits moved by a longer row alongside", _batch),
    ("batched decoding", "logits lost by decoding two rows together", _batched_decoding),
)


def _fitting(session: EngineSession, options: AcceptOptions) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes that the engine's limits take, and the names of the others."""
    shapes = parse_shapes(options.shapes)
    fits = [shape for shape in shapes if sum(shape) <= session.limits.max_positions]
    return fits, [f"{entry}/{output}" for entry, output in shapes if (entry, output) not in fits]
