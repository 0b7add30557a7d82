"""One choice of a request on the server's side: the events of its work become text, usage and log probabilities."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from qtk.models.tokenizer import TextTokenizer
from qtk.serving.answer_text import AnswerText
from qtk.serving.metrics import ServingMetrics
from qtk.serving.token_logprobs import TokenLogprob
from qtk.serving.work import ChoiceWork, Event, PromptScored, TokenMade, WorkEnded, WorkFailed


@dataclass(frozen=True)
class PlacedLogprob:
    """A token's log probability (None for the first token of a prompt) and where its text begins in the choice's text."""

    token: int
    logprob: TokenLogprob | None
    offset: int


@dataclass(frozen=True)
class ChoicePiece:
    """A piece of a choice's text with the log probabilities of its tokens; `finish` is set in the last piece."""

    index: int
    text: str
    logprobs: tuple[PlacedLogprob, ...] = ()
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class ChoiceFailed:
    """What ends a request before its choices are complete."""

    message: str
    status: int


Outcome = ChoicePiece | ChoiceFailed


class ChoiceStream:
    """Hears the events of one work, in the server's thread, and puts pieces into the queue of the request."""

    def __init__(
        self,
        index: int,
        answer: AnswerText,
        queue: asyncio.Queue[Outcome],
        metrics: ServingMetrics,
        *,
        prompt: ScoredPrompt | None = None,
    ) -> None:
        """prompt: the prompt that is given back in front of the text."""
        self._index, self._answer, self._queue, self._metrics = index, answer, queue, metrics
        self._prompt = prompt
        self._before = 0 if prompt is None else len(prompt.text)
        self._pending: list[PlacedLogprob] = []
        self._begin = self._last = time.perf_counter()
        self.tokens = 0
        self.done = False

    def hear(self, work: ChoiceWork, event: Event) -> None:
        """Takes an event of the work. What comes after the end is dropped."""
        if self.done:
            return
        if isinstance(event, WorkFailed):
            self.done = True
            self._queue.put_nowait(ChoiceFailed(event.message, event.status))
        elif isinstance(event, PromptScored):
            assert self._prompt is not None
            self._prompt.logprobs.extend(event.logprobs)
        elif isinstance(event, WorkEnded):
            rest = self._with_prompt(self._answer.rest())
            self._end(rest, "stop" if self._answer.stopped else event.finish)
        else:
            self._token(work, event)

    def _token(self, work: ChoiceWork, event: TokenMade) -> None:
        (self._metrics.between_tokens if self.tokens else self._metrics.first_token).observe(event.made - self._last)
        self._last = event.made
        self.tokens += 1
        offset = self._before + self._answer.seen
        text = self._with_prompt(self._answer.add(event.token))
        if event.logprob is not None:
            self._pending.append(PlacedLogprob(event.token, event.logprob, offset))
        if self._answer.stopped:
            work.cancel()
            self._end(text, "stop")
        elif text:
            self._put(text, None)

    def _with_prompt(self, text: str) -> str:
        """The text, behind the prompt where that is given back and has not been."""
        if self._prompt is None:
            return text
        prompt, self._prompt = self._prompt, None
        self._pending += prompt.placed()
        return prompt.text + text

    def _end(self, text: str, finish: Literal["stop", "length"]) -> None:
        self.done = True
        self._metrics.new_tokens.inc(self.tokens)
        self._put(text, finish)

    def _put(self, text: str, finish: Literal["stop", "length"] | None) -> None:
        end = self._before + self._answer.length
        # Tokens of a stop text are not part of the answer.
        shown = tuple(found for found in self._pending if not self._answer.stopped or found.offset < end)
        self._pending = []
        self._queue.put_nowait(ChoicePiece(self._index, text, shown, finish))


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt that is given back, with its tokens' log probabilities as they come."""

    text: str
    tokens: tuple[int, ...]
    tokenizer: TextTokenizer
    logprobs: list[TokenLogprob | None] = field(default_factory=list)

    def placed(self) -> list[PlacedLogprob]:
        """The tokens with the places of their texts."""
        offsets, end = [], 0
        for token in self.tokens:
            offsets.append(end)
            end += len(self.tokenizer.decode([token], skip_special=False))
        return [
            PlacedLogprob(token, logprob, offset)
            for token, logprob, offset in zip(self.tokens, self.logprobs, offsets, strict=False)
        ]
