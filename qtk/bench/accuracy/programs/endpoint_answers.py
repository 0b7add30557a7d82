"""Answers from an endpoint: many requests at once, each broken off as soon as its answer is certain."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any

from qtk.bench.accuracy.options import ModelOptions, Rules
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.programs.generation import answer_end, answer_keys, answer_seed
from qtk.bench.accuracy.programs.prompts import prompt_text
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.bench.endpoint.client import Endpoint, EndpointClient, RefusedByEndpoint
from qtk.errors import InputError
from qtk.models.chat import codefuse_chat
from qtk.progress import Progress

_AT_ONCE = 8
_TRIES = 5  # of a request that is refused because the endpoint is busy
_LONGEST_WAIT = 30.0


class EndpointAnswers:
    """Asks one model of an endpoint for the answers to a part's tasks."""

    def __init__(self, endpoint: Endpoint, name: str, options: ModelOptions, rules: Rules) -> None:
        self._endpoint, self._name, self._options, self._rules = endpoint, name, options, rules

    def answers(self, part: SuitePart, tasks: Sequence[Task], finished: Collection[AnswerKey] = ()) -> Iterator[Answer]:
        """The answers whose keys are not in `finished`, as they are done. Errors as of `EndpointClient.events`; those that are
        done before an error are given first."""
        wanted = answer_keys(part, tasks, self._options.samples)
        missing = {key: task for key, task in wanted.items() if key not in finished}
        clients: queue.SimpleQueue[EndpointClient] = queue.SimpleQueue()
        at_once = self._options.batch_size or _AT_ONCE
        for _ in range(at_once):
            clients.put(EndpointClient(self._endpoint))

        def ask(key: AnswerKey) -> Answer:
            client = clients.get()
            try:
                text = self._text(client, part, key, missing[key])
            finally:
                clients.put(client)
            return Answer(key.suite, key.language, key.task_id, key.sample, text)

        threads = ThreadPoolExecutor(at_once)
        label = f"{part.label}: {self._name} at {self._endpoint.host}"
        try:
            with Progress(label, len(missing), "answers") as progress:
                for done in as_completed([threads.submit(ask, key) for key in missing]):
                    yield done.result()
                    progress.advance(1)
        finally:
            threads.shutdown(cancel_futures=True)
            while not clients.empty():
                clients.get().close()

    def _text(self, client: EndpointClient, part: SuitePart, key: AnswerKey, task: Task) -> str:
        """One answer. An endpoint that is busy is asked again when it says so."""
        path, body = self._request(part, key, task)
        ended = answer_end(part, task, self._options, self._rules)
        for attempt in range(1, _TRIES + 1):
            try:
                return self._heard(client, path, body, ended)
            except RefusedByEndpoint as error:
                if error.status != 429 or attempt == _TRIES:
                    raise
                time.sleep(min(_LONGEST_WAIT, 1.0 if error.retry_after is None else error.retry_after))
        raise AssertionError("the last attempt returns or raises")

    def _request(self, part: SuitePart, key: AnswerKey, task: Task) -> tuple[str, dict[str, Any]]:
        options = self._options
        body: dict[str, Any] = {
            "model": self._name,
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "stream": True,
        }
        if options.temperature > 0:
            body |= {"top_p": options.top_p, "seed": answer_seed(options, key.name)}
        text = prompt_text(part.suite, task, options.chat_format)
        message = {"role": "user", "content": text}
        if options.chat_format == "model":  # the endpoint renders it by the model's own template
            return "/chat/completions", {**body, "messages": [message]}
        if options.chat_format == "codefuse":
            text = codefuse_chat([message], "", generation_prompt=True)
        return "/completions", {**body, "prompt": text}

    def _heard(self, client: EndpointClient, path: str, body: dict[str, Any], ended: Callable[[str, str], bool]) -> str:
        text = ""
        with closing(client.events(path, body)) as events:  # type: ignore[type-var]
            for event in events:
                try:
                    pieces = [_piece(choice) for choice in event.get("choices", ())]
                except (AttributeError, TypeError):
                    raise InputError(
                        f"{self._endpoint.address} does not stream as OpenAI's API does: it sent {event!r:.100}."
                    ) from None
                for piece in pieces:
                    text += piece
                    if ended(text, piece):
                        return text
        return text


def _piece(choice: dict[str, Any]) -> str:
    """The text of a completion's piece, or of a chat's."""
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
