"""How works are carried out: in rows that join and leave a batch, or one after the other where a runtime has its own loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from qtk.engines.sessions.row_batch import PromptPiece, RowBatch
from qtk.engines.sessions.sampling import Sampler
from qtk.engines.sessions.session import DecoderSession, EngineSession
from qtk.serving.token_logprobs import TokenLogprob, token_logprob
from qtk.serving.work import ChoiceWork, Event, PromptScored, Tell, TokenMade, WorkEnded


class Runner(Protocol):
    """Carries works out. Used by one thread; the properties may be read from others."""

    capacity: int  # works at once
    gives_logprobs: bool

    @property
    def works(self) -> Sequence[ChoiceWork]:
        """Those that were taken and are not done."""
        ...

    def admit(self, work: ChoiceWork) -> None:
        """Takes a work, where there is room for it."""
        ...

    def step(self, tell: Tell) -> None:
        """A bounded piece of what is to be done."""
        ...


class RowsRunner:
    """Continuous batching: each step runs a chunk of one prompt, and a token of every row whose prompt is done.

    A work that draws with a seed is decoded apart from the others, so that its draws are those of `qtk generate` and repeat
    to the bit, whoever else is there.
    """

    gives_logprobs = True

    def __init__(self, session: DecoderSession, batch: RowBatch) -> None:
        self._session, self._batch = session, batch
        self.capacity = batch.capacity
        self._works: dict[int, ChoiceWork] = {}  # by the key of their row, in the order in which they came
        self._prompts: dict[int, Iterator[PromptPiece]] = {}  # of the rows whose prompt has begun and is not done
        self._decoding: dict[int, _Decoded] = {}
        self._keys = itertools.count()

    @property
    def works(self) -> Sequence[ChoiceWork]:
        return list(self._works.values())

    def admit(self, work: ChoiceWork) -> None:
        self._works[next(self._keys)] = work

    def step(self, tell: Tell) -> None:
        for key in [key for key, work in self._works.items() if work.cancelled]:
            self._leave(key)
        tell([*self._prompt_step(), *self._decode_step()])

    def _leave(self, key: int) -> None:
        joined = key in self._decoding or key in self._prompts
        self._prompts.pop(key, None)
        self._decoding.pop(key, None)
        del self._works[key]
        if joined:
            self._batch.leave(key)

    def _prompt_step(self) -> Iterator[tuple[ChoiceWork, Event]]:
        """A chunk of the first prompt that is not done."""
        key = next((key for key in self._works if key not in self._decoding), None)
        if key is None:
            return
        work = self._works[key]
        if key not in self._prompts:
            self._batch.join(key, apart=work.decoding.seed is not None and work.decoding.temperature > 0)
            self._prompts[key] = self._batch.prefill(key, work.prompt, every_position=work.score_prompt)
        piece = next(self._prompts[key])
        if work.score_prompt:
            yield work, PromptScored(_prompt_logprobs(work, piece))
        if piece.stop == len(work.prompt):
            del self._prompts[key]
            self._decoding[key] = _Decoded(Sampler(work.decoding), self._session.ends(work.decoding))
            yield from self._choose(key, piece.logits[-1])

    def _decode_step(self) -> Iterator[tuple[ChoiceWork, Event]]:
        last = {key: row.tokens[-1] for key, row in self._decoding.items()}
        for keys, logits in self._batch.decode(last):
            for key, line in zip(keys, logits, strict=True):
                yield from self._choose(key, line)

    def _choose(self, key: int, logits: np.ndarray) -> Iterator[tuple[ChoiceWork, Event]]:
        """The next token of a row, and its end where that is it."""
        work, row = self._works[key], self._decoding[key]
        finish: Literal["stop", "length"] | None = "length" if work.max_new_tokens == 0 else None
        if finish is None:
            token = int(row.sampler(logits[None], [work.choice])[0])
            if token in row.ends:
                finish = "stop"
            else:
                row.tokens.append(token)
                top = work.top_logprobs
                yield work, TokenMade(token, None if top is None else token_logprob(logits, token, top))
                finish = "length" if len(row.tokens) == work.max_new_tokens else None
        if finish is not None:
            self._leave(key)
            yield work, WorkEnded(finish)


@dataclass(frozen=True)
class _Decoded:
    """A row whose prompt is done: what chooses its tokens, those that end it, and those that it has so far."""

    sampler: Sampler
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)


def _prompt_logprobs(work: ChoiceWork, piece: PromptPiece) -> tuple[TokenLogprob | None, ...]:
    """Of the tokens that the piece's logits predict, in front of them None for the first token of all."""
    nexts = work.prompt[piece.first + 1 : piece.stop + 1]
    found = [
        token_logprob(line, token, work.top_logprobs or 0) for line, token in zip(piece.logits, nexts, strict=False)
    ]
    return (None, *found) if piece.first == 0 else tuple(found)


class CallRunner:
    """One work after the other, for a runtime with a loop of its own, which takes whole calls and gives no logits."""

    capacity = 1
    gives_logprobs = False

    def __init__(self, session: EngineSession) -> None:
        self._session = session
        self._works: list[ChoiceWork] = []

    @property
    def works(self) -> Sequence[ChoiceWork]:
        return list(self._works)

    def admit(self, work: ChoiceWork) -> None:
        self._works.append(work)

    def step(self, tell: Tell) -> None:
        for work in list(self._works):
            self._carry_out(work, tell)
            self._works.remove(work)

    def _carry_out(self, work: ChoiceWork, tell: Tell) -> None:
        def on_token(row: int, token: int) -> bool:
            tell([(work, TokenMade(token, None))])
            return work.cancelled

        if work.cancelled:
            return
        # The number of a choice is part of its seed, as the number of a prompt is in a call of several.
        [seed] = work.decoding.row_seeds(work.choice + 1)[work.choice :]
        decoding = replace(work.decoding, seed=None if seed is None else (seed,))
        finish: Literal["stop", "length"] = "length"
        if work.max_new_tokens:
            finish = self._session.generate([work.prompt], work.max_new_tokens, decoding, on_token).finish[0]
        tell([(work, WorkEnded(finish))])
