"""What a latency measurement calls: one interface to engines and to endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qtk.bench.latency_result import EngineLatency, ShapeLatency
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.session import EngineSession
from qtk.errors import InputError, listing

Shape = tuple[int, int]


def shape_name(shape: Shape) -> str:
    """A shape as --shapes writes it: "16/8"."""
    return f"{shape[0]}/{shape[1]}"


@dataclass(frozen=True)
class TimedCall:
    """One call. tokens: new ones, of all rows. prefill_seconds: from the call to the first token; token_seconds: of each later
    step."""

    tokens: int
    prefill_seconds: float
    token_seconds: Sequence[float]

    @property
    def seconds(self) -> float:
        """The whole call, from the prompt to the last token."""
        return self.prefill_seconds + sum(self.token_seconds)


class Timed(Protocol):
    """Something that generates, whose calls are timed."""

    def require_fit(self, shapes: Sequence[Shape], batch: int) -> None:
        """InputError, with every reason, for shapes that it cannot take."""
        ...

    def call(self, random: np.random.Generator, shape: Shape, batch: int) -> TimedCall:
        """One call of a random prompt for each row."""
        ...

    def figures(self, first_call_seconds: float, shapes: list[ShapeLatency]) -> EngineLatency:
        """What was measured, with what it was measured on."""
        ...


@dataclass(frozen=True)
class TimedEngine:
    """An engine's session, end-of-sequence ignored."""

    session: EngineSession

    def require_fit(self, shapes: Sequence[Shape], batch: int) -> None:
        limits = self.session.limits
        reasons = [
            f"{shape_name(shape)}: {sum(shape)} tokens, the engine holds {limits.max_positions}"
            for shape in shapes
            if sum(shape) > limits.max_positions
        ]
        if batch > limits.max_batch:
            reasons.append(f"batch {batch}, the engine takes {limits.max_batch}")
        if reasons:
            raise InputError(f"{self.session.directory} cannot run these shapes:\n{listing(reasons)}")

    def call(self, random: np.random.Generator, shape: Shape, batch: int) -> TimedCall:
        ids = self.session.prompt_ids
        prompts = random.choice(self.session.vocab_size if ids is None else ids, (batch, shape[0])).tolist()
        made = self.session.generate(prompts, shape[1], Decoding(ignore_eos=True))
        return TimedCall(sum(map(len, made.tokens)), made.prefill_seconds, made.token_seconds)

    def figures(self, first_call_seconds: float, shapes: list[ShapeLatency]) -> EngineLatency:
        description = self.session.description
        return EngineLatency(
            engine=self.session.directory.resolve().name,
            backend=description.backend,
            gpu=description.gpu,
            dtype=description.dtype,
            accuracy_level=description.accuracy_level,
            lm_head_bits=description.lm_head_bits,
            first_call_ms=first_call_seconds * 1e3,
            compiled_before=self.session.compiled_before,
            shapes=shapes,
        )
