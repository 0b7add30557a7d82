"""An endpoint as something that is timed: a request for each row at once, its times from the stream."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

from qtk.bench.endpoint.client import EndpointClient, StreamedAnswer, streamed_answer
from qtk.bench.endpoint.options import EndpointOptions, LoadOptions
from qtk.bench.endpoint.prompts import endpoint_tokenizer
from qtk.bench.endpoint.served_model import ServedModel, endpoint_of, served_name, tried_model
from qtk.bench.latency_result import EngineLatency, ShapeLatency
from qtk.bench.timed import Shape, TimedCall, shape_name

UNKNOWN = "unknown"


class TimedEndpoint:
    """A model of an endpoint, as `Timed`. One connection for each row is kept open."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._clients: list[EndpointClient] = []
        self._odd: dict[str, str] = {}  # what was odd, by shape and kind, as it was last

    @staticmethod
    def open(address: str, options: EndpointOptions, load: LoadOptions) -> TimedEndpoint:
        """Asks the endpoint what it serves and takes. InputError for an address that is not one of an endpoint of OpenAI's
        API, or a model that it does not serve; MachineError for one that is down."""
        with EndpointClient(endpoint_of(address, options)) as client:
            name = served_name(client, options.model)
            return TimedEndpoint(tried_model(client, name, endpoint_tokenizer(load.tokenizer, options.model or name)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def require_fit(self, shapes: Sequence[Shape], batch: int) -> None:
        """An endpoint says by itself what it does not take."""

    def call(self, random: np.random.Generator, shape: Shape, batch: int) -> TimedCall:
        """A request for each row, sent at once. The times are those of the request that ended last. Its prompts are new ones."""
        bodies = [self.model.body(self.model.prompt(shape[0]), shape[1]) for _ in range(batch)]
        while len(self._clients) < batch:
            self._clients.append(EndpointClient(self.model.endpoint))
        if batch == 1:
            answers = [streamed_answer(self._clients[0], bodies[0])]
        else:
            with ThreadPoolExecutor(batch) as threads:
                answers = list(threads.map(streamed_answer, self._clients, bodies))
        for answer in answers:
            self.observe(answer, shape)
        last = max(answers, key=lambda answer: answer.seconds)
        return TimedCall(sum(map(new_tokens, answers)), token_times(last)[0], times_between(last))

    def figures(self, first_call_seconds: float, shapes: list[ShapeLatency]) -> EngineLatency:
        return EngineLatency(
            engine=self.model.label,
            backend="endpoint",
            gpu=UNKNOWN,
            dtype=UNKNOWN,
            accuracy_level=None,
            lm_head_bits=None,
            first_call_ms=first_call_seconds * 1e3,
            shapes=shapes,
        )

    def observe(self, answer: StreamedAnswer, shape: Shape) -> None:
        """Notes what differs from what was asked for."""
        prompt, wanted = shape
        if answer.prompt_tokens not in (None, prompt):
            self._odd[f"{prompt} prompt"] = (
                f"{self.model.label} counts {answer.prompt_tokens} tokens in prompts of {prompt}: is --tokenizer its own?"
            )
        count = new_tokens(answer)
        if count != wanted:
            why = "it does not ignore end-of-sequence" if count < wanted else "it counts in another way"
            self._odd[f"{shape_name(shape)} answer"] = (
                f"{shape_name(shape)}: {self.model.label} gave {count} tokens where {wanted} were asked for ({why}); rates "
                "count the tokens that came"
            )
        elif len(answer.pieces) != count:
            self._odd[f"{shape_name(shape)} pieces"] = (
                f"{shape_name(shape)}: {self.model.label} streamed {count} tokens in {len(answer.pieces)} pieces; the times "
                "between tokens are those between pieces, spread evenly"
            )

    def remarks(self) -> list[str]:
        """What the figures have to be read with."""
        return [*self.model.remarks(), *self._odd.values()]


def new_tokens(answer: StreamedAnswer) -> int:
    """New tokens as the endpoint counts them; pieces, where it does not say."""
    return len(answer.pieces) if answer.tokens is None else answer.tokens


def token_times(answer: StreamedAnswer) -> list[float]:
    """When each token came, in seconds from the request. Where pieces hold several tokens, the times between two pieces are
    spread evenly; the first token came with the first piece."""
    count, pieces = new_tokens(answer), answer.pieces
    if not pieces or not count:
        return [answer.seconds]
    return [float(time) for time in np.interp(np.linspace(0, len(pieces) - 1, count), range(len(pieces)), pieces)]


def times_between(answer: StreamedAnswer) -> list[float]:
    """Seconds between each token and the next. Of tokens that all came in one piece they cannot be seen: the whole answer's
    time, spread over its tokens, is the most that they can have been."""
    count = new_tokens(answer)
    if len(answer.pieces) < 2 <= count:
        return [answer.seconds / count] * (count - 1)
    return [float(seconds) for seconds in np.diff(token_times(answer))]
