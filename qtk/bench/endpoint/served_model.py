"""A model of an endpoint: what it is called, what of a request the endpoint takes, and how its prompts are sent."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtk.bench.endpoint.client import Endpoint, EndpointClient, RefusedByEndpoint, streamed_answer
from qtk.bench.endpoint.options import KEY_VARIABLE, EndpointOptions
from qtk.bench.endpoint.prompts import random_ids, random_text
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer

_TRIES = 5
IGNORE_EOS, USAGE, TOKEN_IDS = "ignore_eos", "stream_options", "token ids"
_WITHOUT = {
    IGNORE_EOS: "does not take ignore_eos, so an answer may end before it has as many tokens as asked for",
    USAGE: "does not say how many tokens there were, so each piece of its stream is counted as one",
    TOKEN_IDS: "does not take token ids, so prompts are random texts, tokenized here to the exact length",
}


@dataclass(frozen=True)
class ServedModel:
    """A model that answers. takes: those of IGNORE_EOS, USAGE and TOKEN_IDS that the endpoint accepts. added: tokens that it
    counts of a prompt beyond those that were sent (it puts one in front, as a rule)."""

    endpoint: Endpoint
    name: str
    tokenizer: TextTokenizer
    takes: frozenset[str]
    added: int

    @property
    def label(self) -> str:
        """What its figures are called."""
        return f"{self.name} at {self.endpoint.host}"

    def prompt(self, length: int) -> list[int] | str:
        """A random prompt that the endpoint counts as `length` tokens.

        Another one each time, whatever the seed: servers keep what they computed of earlier prompts, in earlier runs too, and
        one that they know has its first token for nothing.
        """
        sent = max(1, length - self.added)
        make = random_ids if TOKEN_IDS in self.takes else random_text
        return make(self.tokenizer, np.random.default_rng(), sent)

    def body(self, prompt: list[int] | str, new_tokens: int) -> dict[str, Any]:
        """A streamed request for so many new tokens, the most likely ones."""
        return _body(self.name, prompt, new_tokens, self.takes)

    def remarks(self) -> list[str]:
        """What its figures have to be read with."""
        said = [f"{self.label} {text}" for name, text in _WITHOUT.items() if name not in self.takes]
        if self.added:
            counted = f"{self.added} token{'' if self.added == 1 else 's'}"
            said.append(f"{self.label} adds {counted} to a prompt, which its length includes")
        return said


def endpoint_of(address: str, options: EndpointOptions) -> Endpoint:
    """The endpoint with the key of the environment. InputError as of `Endpoint`."""
    return Endpoint(address, os.environ.get(KEY_VARIABLE, ""), options.patience)


def served_name(client: EndpointClient, wanted: str | None) -> str:
    """The name of the model to ask. InputError for a name that is not served, or for none where several are; errors as of
    `EndpointClient.get`."""
    address = client.endpoint.address
    listed = client.get("/models")
    try:
        names = [str(model["id"]) for model in listed["data"]]
    except (TypeError, KeyError):
        raise InputError(
            f"{address} is not an endpoint of OpenAI's API: its list of models holds {listed!r:.100}."
        ) from None
    if wanted is not None and (wanted in names or not names):
        return wanted
    served = ", ".join(names) or "nothing"
    if wanted is not None:
        raise InputError(f"{address} does not serve {wanted!r}; it serves {served}.")
    if len(names) != 1:
        raise InputError(f"{address} serves {served}: say which with --model.")
    return names[0]


def tried_model(client: EndpointClient, name: str, tokenizer: TextTokenizer) -> ServedModel:
    """The model, after requests of a few tokens that show what the endpoint takes.

    InputError where it takes none of them, with what it says of the plainest; errors as of `EndpointClient.events`.
    """
    everything = (IGNORE_EOS, USAGE, TOKEN_IDS)
    refused: RefusedByEndpoint | None = None
    for absent in range(len(everything) + 1):
        for without in itertools.combinations(everything, absent):
            takes = frozenset(everything) - set(without)
            try:
                return _tried(client, name, tokenizer, takes)
            except RefusedByEndpoint as error:
                if error.status not in (400, 404, 415, 422, 500, 501):
                    raise
                refused = error
    assert refused is not None
    raise refused


def _tried(client: EndpointClient, name: str, tokenizer: TextTokenizer, takes: frozenset[str]) -> ServedModel:
    length = 8
    model = ServedModel(client.endpoint, name, tokenizer, takes, 0)
    for _ in range(_TRIES):  # two tokens may be the beginning of a character, which a server holds back
        answer = streamed_answer(client, model.body(model.prompt(length), 2))
        if answer.pieces:
            break
    else:
        raise InputError(f"{client.endpoint.address} answered {_TRIES} requests for 2 tokens without any text.")
    counts = answer.tokens is not None
    added = 0 if answer.prompt_tokens is None else answer.prompt_tokens - length
    return ServedModel(client.endpoint, name, tokenizer, takes if counts else takes - {USAGE}, max(0, added))


def _body(name: str, prompt: Sequence[int] | str, new_tokens: int, takes: frozenset[str]) -> dict[str, Any]:
    more: Mapping[str, Mapping[str, Any]] = {
        IGNORE_EOS: {"ignore_eos": True},
        USAGE: {"stream_options": {"include_usage": True}},
    }
    body: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    for ability, fields in more.items():
        if ability in takes:
            body |= fields
    return body
