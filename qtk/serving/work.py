"""What the engine is asked to do for one choice of a request, and what it tells while it does so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from qtk.engines.sessions.decoding import Decoding
from qtk.serving.token_logprobs import TokenLogprob


@dataclass(frozen=True)
class PromptScored:
    """The log probabilities of some of the prompt's tokens, in order. The first token of a prompt has none."""

    logprobs: tuple[TokenLogprob | None, ...]


@dataclass(frozen=True)
class TokenMade:
    """A new token, with its log probability where that was asked for. made: time.perf_counter()."""

    token: int
    logprob: TokenLogprob | None
    made: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class WorkEnded:
    """Nothing follows. stop: a stop token came; length: as many tokens as were asked for."""

    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class WorkFailed:
    """Nothing follows: the server stops, or the engine failed."""

    message: str
    status: int


Event = PromptScored | TokenMade | WorkEnded | WorkFailed


@dataclass(frozen=True, eq=False)
class ChoiceWork:
    """One choice. prompt: token ids. choice: its number in the request, which its draws depend on, as the number of a prompt
    in `qtk generate`. top_logprobs: how many tokens are named beside each new one; None for no log probabilities.
    score_prompt: whether the prompt's tokens get theirs. waits: whether somebody waits for each token, because it is sent or
    may be the last one; the others may be told of together. client: whose it is. tell: called with this work and each event,
    in the thread of the server, in order.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    decoding: Decoding
    tell: Callable[[ChoiceWork, Event], None]
    client: str = ""
    choice: int = 0
    top_logprobs: int | None = None
    score_prompt: bool = False
    waits: bool = True
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody wants the rest. It is given up before the next step; what was under way may still be told."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


Tell = Callable[[list[tuple[ChoiceWork, Event]]], None]
