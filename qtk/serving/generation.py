"""Carries one request out: its works go to the scheduler, their pieces come back, and a client that leaves ends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from qtk.serving.answer_text import AnswerText
from qtk.serving.bodies import AnswerForm, TokenUsage
from qtk.serving.choices import ChoiceFailed, ChoicePiece, ChoiceStream, Outcome, ScoredPrompt
from qtk.serving.metrics import ServingMetrics
from qtk.serving.refusals import RefusedRequest
from qtk.serving.requests import GenerationRequest
from qtk.serving.scheduler import Scheduler
from qtk.serving.work import ChoiceWork

Receive = Callable[[], Awaitable[Any]]
CLIENT_LEFT = 499


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that is within the bounds, how many tokens may follow it, and its text where that is given back."""

    tokens: tuple[int, ...]
    max_new_tokens: int
    echo: str | None = None


@dataclass(frozen=True)
class PreparedRequest:
    """A request that is within the bounds, and the form of its answer. top_logprobs: as of `ChoiceWork`."""

    request: GenerationRequest
    prompts: Sequence[PreparedPrompt]
    form: AnswerForm
    top_logprobs: int | None
    client: str


class RunningRequest:
    """A request whose works have been submitted. Used as an async context manager; at its end nothing of it runs on."""

    def __init__(self, prepared: PreparedRequest, metrics: ServingMetrics) -> None:
        self._prepared, self._metrics = prepared, metrics
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()
        request = prepared.request
        self._streams: list[ChoiceStream] = []
        self._works: list[ChoiceWork] = []
        for prompt in prepared.prompts:
            for _ in range(request.n):
                self._add(prompt)
        self._watch: asyncio.Task[None] | None = None

    def _add(self, prompt: PreparedPrompt) -> None:
        prepared, index = self._prepared, len(self._works)
        tokenizer = prepared.form.tokenizer
        scored = None if prompt.echo is None else ScoredPrompt(prompt.echo, prompt.tokens, tokenizer)
        stream = ChoiceStream(
            index, AnswerText(tokenizer, prepared.request.stop), self._queue, self._metrics, prompt=scored
        )
        self._streams.append(stream)
        self._works.append(
            ChoiceWork(
                prompt.tokens,
                prompt.max_new_tokens,
                prepared.request.decoding,
                stream.hear,
                client=prepared.client,
                choice=index,
                top_logprobs=prepared.top_logprobs,
                score_prompt=scored is not None and prepared.top_logprobs is not None,
                waits=prepared.request.stream or bool(prepared.request.stop),
            )
        )

    def submit(self, scheduler: Scheduler, receive: Receive) -> None:
        """Queues the works, and from here on listens for the client's leaving. RefusedRequest as of `Scheduler.submit`."""
        scheduler.submit(self._works)
        self._metrics.prompt_tokens.inc(self.usage.prompt_tokens)
        self._watch = asyncio.create_task(self._watch_client(receive))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for work in self._works:
            work.cancel()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._metrics.cancelled.inc()
        for work in self._works:
            work.cancel()
        self._queue.put_nowait(ChoiceFailed("The client has left.", CLIENT_LEFT))

    @property
    def choices(self) -> int:
        return len(self._works)

    @property
    def usage(self) -> TokenUsage:
        """The tokens so far."""
        prompts = self._prepared.prompts
        return TokenUsage(sum(len(prompt.tokens) for prompt in prompts), sum(s.tokens for s in self._streams))

    async def pieces(self) -> AsyncIterator[list[ChoicePiece]]:
        """The pieces of all choices, those together that have come since the last ones. RefusedRequest where the engine fails,
        the server stops or the client leaves."""
        left = len(self._works)
        while left:
            outcomes = [await self._queue.get()]
            while not self._queue.empty():
                outcomes.append(self._queue.get_nowait())
            pieces = [outcome for outcome in outcomes if isinstance(outcome, ChoicePiece)]
            failure = next((outcome for outcome in outcomes if isinstance(outcome, ChoiceFailed)), None)
            if pieces and (failure is None or failure.status != CLIENT_LEFT):
                yield pieces
            if failure is not None:
                raise RefusedRequest(failure.status, failure.message)
            left -= sum(piece.finish is not None for piece in pieces)

    async def whole(self) -> list[ChoicePiece]:
        """Every choice in one piece."""
        choices = [ChoicePiece(index, "") for index in range(self.choices)]
        async for pieces in self.pieces():
            for piece in pieces:
                so_far = choices[piece.index]
                choices[piece.index] = replace(
                    piece, text=so_far.text + piece.text, logprobs=so_far.logprobs + piece.logprobs
                )
        return choices
