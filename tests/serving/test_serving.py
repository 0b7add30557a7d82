"""`qtk serve` as OpenAI's own client sees it: texts, streams, log probabilities, errors; many clients at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from scipy.special import log_softmax
from support.served import Served, served

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.session import DecoderSession
from qtk.serving.options import ServeOptions

PROMPT = "def add(a, b):"
MOST = 160  # positions of the engine


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serving") / "engine"
    options = BuildOptions(accuracy_level=0, max_input_len=96, max_output_len=64, max_batch_size=4)
    build_engine(tiny(), out, options)
    return out


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[Served]:
    options = ServeOptions(port=0, model_name="tiny", max_waiting=32, max_body=20_000)
    with served(engine, options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with server.openai() as made:
        yield made


@pytest.fixture(scope="module")
def session(engine: Path) -> Iterator[DecoderSession]:
    """The same engine, asked without a server."""
    with DecoderSession.open(engine, 1) as opened:
        yield opened


def expected(session: DecoderSession, prompt: str | list[int], count: int, **settings: Any) -> str:
    ids = session.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt
    tokens = session.generate([ids], count, Decoding(**{"ignore_eos": True, **settings})).tokens[0]
    return session.tokenizer.decode(tokens)


def complete(client: OpenAI, prompt: Any = PROMPT, **settings: Any) -> Any:
    asked = {"model": "tiny", "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}
    return client.completions.create(**{**asked, "prompt": prompt, **settings})


def chat(client: OpenAI, **settings: Any) -> Any:
    asked = {"model": "tiny", "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
    return client.chat.completions.create(**{**asked, "messages": messages, **settings})


def test_a_completion_is_what_the_engine_generates(client: OpenAI, session: DecoderSession) -> None:
    answer = complete(client)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, answer.model) == (expected(session, PROMPT, 24), "length", "tiny")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (14, 24, 38)


def test_prompts_may_be_several_and_token_ids(client: OpenAI, session: DecoderSession) -> None:
    prompts = [[5, 6, 7], [9] * 20]
    texts = [choice.text for choice in complete(client, prompts).choices]
    assert texts == [expected(session, prompt, 24) for prompt in prompts]
    assert complete(client, [5, 6, 7]).choices[0].text == texts[0]


def test_a_stop_token_ends_a_text_unless_it_is_to_be_ignored(client: OpenAI, session: DecoderSession) -> None:
    """Of prompts of one token each, some reach the model's stop token; their texts end before it."""
    [stop] = session.description.stop_tokens
    whole = {first: session.generate([[first]], 60, Decoding(ignore_eos=True)).tokens[0] for first in range(2, 40)}
    first, tokens = next((first, tokens) for first, tokens in whole.items() if stop in tokens[1:])
    answer = complete(client, [first], max_tokens=60, extra_body={})
    count = tokens.index(stop)
    assert answer.choices[0].text == session.tokenizer.decode(tokens[:count])
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", count)
    assert complete(client, [first], max_tokens=60).choices[0].finish_reason == "length"


def test_a_stream_gives_the_text_in_pieces_and_the_usage_at_its_end(client: OpenAI) -> None:
    whole = complete(client)
    pieces = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert len(pieces) > 10
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 2) + ["length"]
    assert (pieces[-1].choices, pieces[-1].usage) == ([], whole.usage)
    assert all(piece.usage is None for piece in complete(client, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_text_before_it(client: OpenAI, stream: bool) -> None:
    whole = complete(client).choices[0].text
    stop = whole[9:12]
    before = whole[: whole.index(stop)]
    answer = complete(client, stop=["not there", stop], stream=stream)
    pieces = list(answer) if stream else [answer]
    assert "".join(piece.choices[0].text for piece in pieces) == before
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_a_seed_gives_the_draws_of_qtk_generate_whoever_else_is_there(client: OpenAI, session: DecoderSession) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.8, "seed": 11}
    alone = expected(session, PROMPT, 24, **drawn)

    def ask(number: int) -> str:
        if number % 2:
            return str(complete(client, [7 + number] * 30, max_tokens=40, temperature=1).choices[0].text)
        return str(complete(client, **drawn).choices[0].text)

    with ThreadPoolExecutor(6) as threads:
        texts = list(threads.map(ask, range(12)))
    assert set(texts[::2]) == {alone}
    several = [choice.text for choice in complete(client, n=3, **drawn).choices]
    assert several[0] == alone
    assert len(set(several)) == 3


def test_without_a_seed_texts_differ(client: OpenAI) -> None:
    texts = {complete(client, temperature=1).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_many_at_once_get_what_each_gets_alone(client: OpenAI, session: DecoderSession) -> None:
    """More than the engine has rows, of many lengths."""
    prompts = [[3 + number] * (1 + 5 * number % 60) for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(lambda ids: complete(client, ids, max_tokens=30).choices[0].text, prompts))
    assert texts == [expected(session, ids, 30) for ids in prompts]


def test_a_chat_is_rendered_by_the_models_template(client: OpenAI, session: DecoderSession) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
    ids = session.tokenizer.encode(session.tokenizer.render(messages))
    answer = chat(client)
    assert answer.choices[0].message.content == expected(session, ids, 24)
    assert (answer.choices[0].message.role, answer.usage.prompt_tokens) == ("assistant", len(ids))
    pieces = list(chat(client, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert (text, pieces[-1].choices[0].finish_reason) == (answer.choices[0].message.content, "length")
    bounded = chat(client, max_tokens=None, max_completion_tokens=3)
    assert bounded.usage.completion_tokens == 3
    # As many tokens as fit, where the client names no number.
    assert chat(client, max_tokens=None).usage.total_tokens == MOST


def test_log_probabilities_are_those_of_the_model(client: OpenAI, session: DecoderSession) -> None:
    ids = [5, 6, 7, 8]
    tokens = session.generate([ids], 8, Decoding(ignore_eos=True)).tokens[0]
    logs = log_softmax(session.logits([[*ids, *tokens]])[0].astype(np.float64), axis=-1)
    of_tokens = [logs[len(ids) - 1 + place, token] for place, token in enumerate(tokens)]
    found = complete(client, ids, max_tokens=8, logprobs=3).choices[0]
    np.testing.assert_allclose(found.logprobs.token_logprobs, of_tokens, atol=1e-3)
    assert all(1 <= len(top) <= 3 for top in found.logprobs.top_logprobs)
    # A temperature changes the draws, not the probabilities.
    drawn = complete(client, ids, max_tokens=1, logprobs=0, temperature=2, top_p=1e-9).choices[0]
    assert drawn.logprobs.token_logprobs == found.logprobs.token_logprobs[:1]
    scored = complete(client, ids, max_tokens=0, logprobs=1, echo=True).choices[0]
    assert scored.text == session.tokenizer.decode(ids)
    assert scored.logprobs.token_logprobs[0] is None
    np.testing.assert_allclose(
        scored.logprobs.token_logprobs[1:], [logs[place, token] for place, token in enumerate(ids[1:])], atol=1e-3
    )


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat_stand_beside_its_tokens(client: OpenAI, stream: bool) -> None:
    answer = chat(client, max_tokens=6, logprobs=True, top_logprobs=2, stream=stream)
    choices = [piece.choices[0] for piece in answer] if stream else [answer.choices[0]]
    tokens = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert len(tokens) == 6
    for entry in tokens:
        assert [entry.top_logprobs[0].token, entry.top_logprobs[0].logprob] == [entry.token, entry.logprob]
        assert entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob


def test_the_model_is_listed_with_its_context(client: OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.max_model_len) == ("tiny", MOST)  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_health_and_metrics(server: Served, client: OpenAI) -> None:
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    before = server.metric("qtk_generated_tokens_total")
    complete(client, max_tokens=7)
    assert server.metric("qtk_generated_tokens_total") == before + 7
    families = {
        family.name: family for family in text_string_to_metric_families(httpx.get(f"{server.address}/metrics").text)
    }
    assert families["qtk_time_to_first_token_seconds"].type == "histogram"
    assert server.metric('qtk_requests_total{endpoint="completions",status="200"}') > 0
    assert server.metric("qtk_rows_running") == 0


def post(server: Served, body: Any, path: str = "/v1/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.address}{path}", content=content, timeout=60)


BODY = {"model": "tiny", "prompt": "a"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"{", None, "not JSON"),
        (b"[]", None, "not a JSON object"),
        (b"\xff\xfe", None, "not JSON"),
        (b"[" * 15_000, None, "not JSON"),
        ({"prompt": "a"}, "model", "model: Field required"),
        ({**BODY, "temperature": 3}, "temperature", "less than or equal to 2"),
        ({**BODY, "top_p": 0}, "top_p", "greater than 0"),
        ({**BODY, "max_tokens": "many"}, "max_tokens", "valid integer"),
        ({**BODY, "stop": [""]}, "stop", "up to 4 texts"),
        ({**BODY, "stop": list("abcde")}, "stop", "up to 4 texts"),
        ({**BODY, "seed": 0.5}, "seed", "integer"),
        ({**BODY, "n": 17}, "n", "less than or equal to 16"),
        ({**BODY, "prompt": ["a"] * 17}, "prompt", "1 to 16 choices"),
        ({**BODY, "prompt": []}, "prompt", "1 to 16 choices"),
        ({**BODY, "prompt": [400]}, "prompt", "token outside 0..319"),
        ({**BODY, "prompt": ""}, "prompt", "no tokens"),
        ({**BODY, "logit_bias": {"5": 1}}, "logit_bias", "at most 0 items"),
        ({**BODY, "presence_penalty": 1}, "presence_penalty", "0"),
        ({**BODY, "best_of": 2}, "best_of", "not served"),
        ({**BODY, "tool": 1}, "tool", "not known"),
        ({**BODY, "prompt": [5] * 150}, "prompt", "maximum context length is 160 tokens"),
    ],
    ids=lambda value: None,
)
def test_a_wrong_request_gets_openais_error_object(server: Served, body: Any, param: str | None, says: str) -> None:
    answer = post(server, body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**CHAT, "messages": []}, "messages"),
        ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({**CHAT, "messages": [{"role": "user", "content": "a" * 200}]}, "messages"),
        ({**CHAT, "top_logprobs": 3}, "top_logprobs"),
        ({**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ],
    ids=lambda value: None,
)
def test_a_chat_that_is_not_served_says_so(server: Served, body: Any, param: str) -> None:
    answer = post(server, body, "/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_client_sees_the_errors_as_its_own_classes(server: Served, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
        complete(client, "x" * 200)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="'tiny' is") as absent:
        complete(client, model="other")
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError, match="larger than 20000 bytes") as large:
        complete(client, "x" * 30_000)
    assert large.value.status_code == 413


def test_other_paths_and_methods_are_refused_in_the_same_form(server: Served) -> None:
    absent = httpx.get(f"{server.address}/v2/models")
    assert (absent.status_code, absent.json()["error"]["message"]) == (404, "GET /v2/models is not served here.")
    method = httpx.get(f"{server.address}/v1/completions")
    assert (method.status_code, method.json()["error"]["type"]) == (405, "invalid_request_error")


def test_texts_in_parts_and_fields_at_their_defaults_are_taken(server: Served) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    body = {**CHAT, "messages": parts, "max_tokens": 2, "temperature": None, "top_p": None, "n": None, "stop": None}
    body |= {"frequency_penalty": 0, "logit_bias": None, "user": "me", "store": False, "seed": -1, "stream": None}
    assert post(server, body, "/v1/chat/completions").status_code == 200


def test_a_client_that_leaves_frees_its_row(server: Served, client: OpenAI) -> None:
    before = server.metric("qtk_requests_cancelled_total")
    with ThreadPoolExecutor(1) as threads:
        stays = threads.submit(complete, client, [9, 9], max_tokens=60)
        with complete(client, [5], max_tokens=120, stream=True) as stream:
            next(iter(stream))
        assert stays.result().usage.completion_tokens == 60
    server.wait_for("qtk_requests_cancelled_total", before + 1)
    server.wait_for("qtk_rows_running", 0)
