"""Acceptance of an engine on the machine it is for: every check that needs that machine, and the published shapes.

What was compiled without a GPU was never run. This runs it, once, and records what came out, so that each "untested"
becomes a result: the loop's two ways to the same logits, batches, repeatability, limits, distance from the checkpoint
the engine was built from, and latency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import qtk
from qtk.bench.divergence import DivergenceOptions, DivergenceResult, measure_divergence
from qtk.bench.latency import LatencyOptions, LatencyReport, measure, parse_shapes
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest
from qtk.engines.session import DecoderSession, EngineSession, open_session
from qtk.errors import InputError
from qtk.machine import machine
from qtk.progress import Progress


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
    """The record. `engine_manifest_sha256` ties it to one engine; `machine` says what it ran on; `checks_not_run` are
    those that need logits, where the engine's runtime gives tokens only."""

    model_config = ConfigDict(frozen=True)
    qtk_version: str
    engine: str
    engine_manifest_sha256: str | None
    backend: str
    gpu: str
    versions: dict[str, str]
    machine: dict[str, object]
    checks: list[Check]
    checks_not_run: list[str]
    shapes_not_run: list[str]
    latency: LatencyReport | None
    divergence: DivergenceResult | None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def accept(engine: Path, options: AcceptOptions) -> Acceptance:
    """Runs everything. A check that fails does not stop the others. MachineError when the engine cannot run here."""
    session = open_session(engine, options.threads)
    decoder = session if isinstance(session, DecoderSession) else None
    checks: list[Check] = []
    not_checked: list[str] = []
    with Progress("accept", len(_TOKEN_CHECKS) + len(_LOGIT_CHECKS) + 2, "checks") as progress:
        for name, meaning, token_check in _TOKEN_CHECKS:
            checks.append(_run(name, meaning, functools.partial(token_check, session), options.tolerance))
            progress.advance(1, name)
        for name, meaning, logit_check in _LOGIT_CHECKS:
            if decoder is None:
                not_checked.append(name)
                continue
            checks.append(_run(name, meaning, functools.partial(logit_check, decoder), options.tolerance))
            progress.advance(1, name)
        divergence = None
        if decoder is None and options.reference is not None:
            not_checked.append("divergence")
        elif options.reference is not None:
            reference = options.reference
            rows = DivergenceOptions(rows=4, seq_len=min(512, session.limits.max_positions), threads=options.threads)
            measured: list[DivergenceResult] = []

            def kl() -> float:
                measured.append(measure_divergence(engine, reference, rows))
                return measured[0].pooled.kl.mean

            checks.append(_run("divergence", "KL from the checkpoint, nats a token", kl, options.max_kl))
            divergence = measured[0] if measured else None
        progress.advance(1, "divergence")
        fitting, not_run = _fitting(session, options)
        latency = None
        if fitting:
            latency = measure(
                session, LatencyOptions(shapes=",".join(fitting), seconds=options.seconds, threads=options.threads)
            )
        progress.advance(1, "latency")
    manifest = engine / MANIFEST_NAME
    description = session.description
    return Acceptance(
        qtk_version=qtk.__version__,
        engine=engine.name,
        engine_manifest_sha256=file_digest(manifest).sha256 if manifest.is_file() else None,
        backend=description.backend,
        gpu=description.gpu,
        versions=description.versions,
        machine=machine().as_dict(),
        checks=checks,
        checks_not_run=not_checked,
        shapes_not_run=not_run,
        latency=latency,
        divergence=divergence,
    )


def _run(name: str, meaning: str, check: Callable[[], float], most: float) -> Check:
    try:
        figure = check()
    except Exception as error:  # whatever the runtime raises is the finding
        return Check(name=name, passed=False, figure=None, meaning=f"{meaning}: {type(error).__name__}: {error}")
    return Check(name=name, passed=bool(figure <= most), figure=figure, meaning=f"{meaning} (at most {most:g})")


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
)


def _fitting(session: EngineSession, options: AcceptOptions) -> tuple[list[str], list[str]]:
    def split() -> Iterator[tuple[str, bool]]:
        for entry, output in parse_shapes(options.shapes):
            yield f"{entry}/{output}", entry + output <= session.limits.max_positions

    shapes = list(split())
    return [name for name, fits in shapes if fits], [name for name, fits in shapes if not fits]
