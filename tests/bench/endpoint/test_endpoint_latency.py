"""`qtk bench latency` of endpoints: of `qtk serve`, and of small servers that answer in many ways."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support.fake_endpoint import Body, FakeEndpoint, Reply, fake_endpoint, refusal, stream
from support.served import Served, served
from support.tiny_models import write_byte_tokenizer

from qtk.bench.endpoint.client import Endpoint, StreamedAnswer
from qtk.bench.endpoint.options import LoadOptions, is_address
from qtk.bench.endpoint.prompts import random_ids, random_text
from qtk.bench.endpoint.timed_endpoint import times_between, token_times
from qtk.checkpoint.manifest import read_manifest
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer
from qtk.serving.options import ServeOptions

QUICK = ("--runs", "2", "--seconds", "0", "--warmups", "0")


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("endpoint") / "engine"
    options = BuildOptions(accuracy_level=0, max_input_len=64, max_output_len=32, max_batch_size=4)
    build_engine(tiny(), out, options)
    return out


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[Served]:
    with served(engine, ServeOptions(port=0, model_name="tiny")) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes, for endpoints that are not there."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return directory


def measured(answer: Any) -> dict[str, Any]:
    assert answer.returncode == 0, answer.stderr
    report: dict[str, Any] = json.loads(answer.stdout)
    return report


def test_a_server_is_measured_like_an_engine(server: Served, engine: Path, tmp_path: Path, run_qtk) -> None:
    words = ("bench", "latency", f"{server.address}/v1", "--tokenizer", engine, "--shapes", "16/8,32/1", *QUICK)
    report = measured(run_qtk(*words, "-o", tmp_path / "latency", "--json"))
    [found] = report["engines"]
    host = server.address.removeprefix("http://")
    assert (found["engine"], found["backend"]) == (f"tiny at {host}", "endpoint")
    long, single = found["shapes"]
    assert [(s["input_len"], s["output_len"], s["runs"]) for s in (long, single)] == [(16, 8, 2), (32, 1, 2)]
    assert long["tokens_per_s"] == pytest.approx(8 * 2 / sum(long["call_seconds"]), rel=1e-3)
    assert 0 < long["ttft_ms"]["p50"] < 1e3 * max(long["call_seconds"])
    assert single["inter_token_ms"] is None
    assert report["failures"] == []
    assert not [said for said in report["warnings"] if "counts" in said or "does not take" in said]
    manifest = read_manifest(tmp_path / "latency")
    assert (manifest.kind, manifest.options["addresses"]) == ("latency", [f"{server.address}/v1"])
    verified = run_qtk("verify", tmp_path / "latency")
    assert verified.returncode == 0, verified.stderr
    shown = run_qtk(*words)
    assert f"tiny at {host}: from its streams, batch 1" in shown.stdout
    reported = run_qtk("report", tmp_path, "-o", tmp_path / "report")
    assert reported.returncode == 0, reported.stderr
    assert f"tiny at {host}" in (tmp_path / "report" / "report.md").read_text()


def test_rows_are_requests_at_once(server: Served, engine: Path, run_qtk) -> None:
    words = ("bench", "latency", f"{server.address}/v1", "--tokenizer", engine, "--shapes", "8/6", "--batch-size", "3")
    [found] = measured(run_qtk(*words, *QUICK, "--json"))["engines"]
    [shape] = found["shapes"]
    assert shape["batch_size"] == 3
    assert shape["tokens_per_s"] == pytest.approx(3 * 6 * 2 / sum(shape["call_seconds"]), rel=1e-3)


def test_an_engine_and_its_server_take_turns(server: Served, engine: Path, run_qtk) -> None:
    words = ("bench", "latency", engine, f"{server.address}/v1", "--tokenizer", engine, "--shapes", "8/4", *QUICK)
    report = measured(run_qtk(*words, "--json"))
    [ratio] = report["ratios"]
    assert (ratio["baseline"], ratio["pairs"]) == ("engine", 2)
    assert ratio["engine"].startswith("tiny at ")


def test_load_is_a_table_and_a_plot(server: Served, engine: Path, tmp_path: Path, run_qtk) -> None:
    words = ["bench", "latency", f"{server.address}/v1", "--tokenizer", engine, "--shapes", "8/6", *QUICK]
    words += [
        "--concurrency",
        "1,3",
        "--rate",
        "200",
        "--max-ttft",
        "60000",
        "-o",
        tmp_path / "load",
        "--plot",
        "load.svg",
    ]
    report = measured(run_qtk(*words, "--json"))
    levels = report["load"]
    assert [(level["clients"], level["rate"]) for level in levels] == [(1, None), (3, None), (None, 200)]
    for level in levels:
        assert (level["shape"], level["failed"]) == ("8/6", {})
        assert level["requests"] >= 2
        assert level["tokens_per_s"] == pytest.approx(6 * level["requests"] / level["seconds"])
        assert level["within"] == pytest.approx(level["requests_per_s"])
        assert level["request_ms"]["p50"] >= level["ttft_ms"]["p50"] > 0
    drawn = ElementTree.parse(tmp_path / "load" / "load.svg").getroot()
    text = "".join(drawn.itertext())
    assert all(said in text for said in ("1 client", "3 clients", "200/s", "tokens/s of all requests", "8/6, arrivals"))
    assert json.loads((tmp_path / "load" / "result.json").read_text())["load"] == levels
    assert run_qtk("verify", tmp_path / "load").returncode == 0


def test_goodput_leaves_out_what_was_too_slow(server: Served, engine: Path, run_qtk) -> None:
    words = [
        "bench",
        "latency",
        f"{server.address}/v1",
        "--tokenizer",
        engine,
        "--shapes",
        "8/6",
        *QUICK,
        "--concurrency",
        "1",
    ]
    for limit in ("--max-ttft", "--max-inter-token"):
        [level] = measured(run_qtk(*words, limit, "0.000001", "--json"))["load"]
        assert (level["within"], level["requests"] > 0) == (0, True)
    shown = run_qtk(*words)
    assert "under load" in shown.stdout, shown.stderr


def asked(run_qtk: Any, fake: FakeEndpoint, tokenizer: Path, *more: object, shapes: str = "8/4") -> Any:
    return run_qtk("bench", "latency", fake.address, "--tokenizer", tokenizer, "--shapes", shapes, *QUICK, *more)


def counted(body: Body) -> Reply:
    """As an endpoint that does what it is asked for."""
    return stream(body["max_tokens"], len(body["prompt"]))


def test_a_refusal_under_load_is_counted_not_fatal(tokenizer: Path, run_qtk) -> None:
    """A request to see what is taken, the first call, four of the table; then two clients with two requests each."""
    numbers = itertools.count(1)

    def answer(body: Body) -> Reply:
        return refusal(429, "busy", Retry_After="1") if next(numbers) == 8 else counted(body)

    with fake_endpoint(answer) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--concurrency", "2", "--runs", "4", "--json"))
    [level] = report["load"]
    assert (level["requests"], level["failed"]) == (3, {"status 429": 1})
    assert any("2 clients: 1 of 4 requests failed (1 times status 429)" in said for said in report["warnings"])


def without(field: str) -> Callable[[Body], Reply]:
    def answer(body: Body) -> Reply:
        if field in body:
            return refusal(400, f"Unrecognized request argument supplied: {field}")
        return stream(min(3, body["max_tokens"]), len(body["prompt"]), usage="stream_options" in body)

    return answer


@pytest.mark.parametrize(
    "load", [(), ("--concurrency", "1,2"), ("--rate", "100", "--runs", "4")], ids=["calls", "clients", "rate"]
)
def test_no_prompt_is_sent_twice(tokenizer: Path, run_qtk, load: tuple[str, ...]) -> None:
    """Of one that a server has seen, in this run or an earlier one, it may have kept what it computed."""
    with fake_endpoint(counted) as fake:
        for _ in range(2):
            measured(asked(run_qtk, fake, tokenizer, "--warmups", "1", *load, "--json", shapes="19/4"))
    prompts = [tuple(body["prompt"]) for body in fake.asked if len(body["prompt"]) == 19]
    assert len(prompts) >= 2 * 4
    assert len(set(prompts)) == len(prompts)


def test_an_endpoint_that_ends_texts_early_is_said_so(tokenizer: Path, run_qtk) -> None:
    with fake_endpoint(without("ignore_eos")) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--json"))
    said = "\n".join(report["warnings"])
    assert "does not take ignore_eos" in said
    assert "gave 3 tokens where 4 were asked for" in said
    [shape] = report["engines"][0]["shapes"]
    assert shape["tokens_per_s"] == pytest.approx(3 * 2 / sum(shape["call_seconds"]), rel=1e-3)
    assert all("ignore_eos" not in body and len(body["prompt"]) == 8 for body in fake.asked[-2:])


def test_an_endpoint_that_does_not_count_is_counted_by_pieces(tokenizer: Path, run_qtk) -> None:
    with fake_endpoint(without("stream_options")) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--json", shapes="8/3"))
    assert any("each piece of its stream is counted as one" in said for said in report["warnings"])
    assert all(body["ignore_eos"] for body in fake.asked[-2:])


def test_an_endpoint_of_texts_gets_texts_of_exact_length(tokenizer: Path, run_qtk) -> None:
    def answer(body: Body) -> Reply:
        if not isinstance(body["prompt"], str):
            return refusal(422, "prompt: a string is needed")
        # It puts a token in front.
        return stream(body["max_tokens"], 1 + len(TextTokenizer(tokenizer).encode(body["prompt"])))

    with fake_endpoint(answer) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--json", shapes="12/4"))
    said = "\n".join(report["warnings"])
    assert "does not take token ids" in said
    assert "adds 1 token to a prompt" in said
    assert "counts" not in said
    assert {len(TextTokenizer(tokenizer).encode(body["prompt"])) for body in fake.asked[-2:]} == {11}


def test_an_endpoint_that_counts_otherwise_is_said_so(tokenizer: Path, run_qtk) -> None:
    with fake_endpoint(lambda body: stream(body["max_tokens"], 2 * len(body["prompt"]))) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--json", shapes="20/4"))
    assert any("counts 24 tokens in prompts of 20: is --tokenizer its own?" in said for said in report["warnings"])


def test_pieces_of_several_tokens_are_said_so(tokenizer: Path, run_qtk) -> None:
    with fake_endpoint(lambda body: stream(body["max_tokens"], len(body["prompt"]), pieces=2)) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, "--json"))
    assert any("streamed 4 tokens in 2 pieces" in said for said in report["warnings"])


def test_tokens_in_one_piece_do_not_seem_to_take_no_time(tokenizer: Path, run_qtk) -> None:
    words = ("--concurrency", "1", "--max-inter-token", "0.000001", "--json")
    with fake_endpoint(lambda body: stream(body["max_tokens"], len(body["prompt"]), pieces=1)) as fake:
        report = measured(asked(run_qtk, fake, tokenizer, *words))
    [level], [shape] = report["load"], report["engines"][0]["shapes"]
    assert level["within"] == 0
    assert level["inter_token_ms"]["p50"] > 0
    assert shape["inter_token_ms"]["p50"] > 0


def test_a_character_that_is_not_complete_is_not_the_end(tokenizer: Path, run_qtk) -> None:
    """A server may hold back the two tokens of the first request."""
    numbers = itertools.count()
    with fake_endpoint(lambda body: stream(body["max_tokens"], 8, pieces=min(next(numbers), 4))) as fake:
        measured(asked(run_qtk, fake, tokenizer, "--json"))


def html(_: Body) -> Reply:
    return Reply(content=b"<html>Welcome</html>", kind="text/html")


@pytest.mark.parametrize(
    ("answer", "models", "code", "says"),
    [
        (counted, Reply(content=b"<html>Welcome", kind="text/html"), 2, "is not an endpoint of OpenAI's API"),
        (counted, Reply(content=b'{"models": []}'), 2, "its list of models holds"),
        (counted, ("one", "two"), 2, "serves one, two: say which with --model"),
        (counted, refusal(401, "no key"), 2, "Set QTK_API_KEY to its key"),
        (counted, refusal(404, "no such page"), 2, "The address ends in /v1"),
        (counted, refusal(500, "out of order"), 4, "status 500: out of order"),
        (html, ("fake",), 2, "does not stream as OpenAI's API does"),
        (lambda body: Reply(events=("nonsense",)), ("fake",), 2, "is not an endpoint of OpenAI's API"),
        (lambda body: Reply(events=([1, 2],)), ("fake",), 2, "does not stream as OpenAI's API does"),
        (lambda body: Reply(events=({"error": {"message": "no memory"}},)), ("fake",), 4, "broke off: no memory"),
        (lambda body: stream(2, 8, done=False), ("fake",), 4, "without saying that it is complete"),
        (lambda body: stream(0, 8), ("fake",), 2, "without any text"),
        (lambda body: refusal(429, "busy", Retry_After="1"), ("fake",), 2, "It is busy"),
        (lambda body: refusal(400, "never"), ("fake",), 2, "status 400: never"),
    ],
    ids=lambda value: None,
)
def test_what_is_not_like_openais_is_named(
    tokenizer: Path, run_qtk, tmp_path: Path, answer: Callable[[Body], Reply], models: Any, code: int, says: str
) -> None:
    with fake_endpoint(answer, models) as fake:
        done = asked(run_qtk, fake, tokenizer, "-o", tmp_path / "latency")
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "bug" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_endpoint_that_is_down_or_slow(tokenizer: Path, run_qtk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        slow = run_qtk("bench", "latency", f"http://127.0.0.1:{port}/v1", "--patience", "0.2", "--tokenizer", tokenizer)
    assert slow.returncode == 4
    assert "did not answer within 0.2 seconds (--patience)" in slow.stderr
    down = run_qtk("bench", "latency", f"http://127.0.0.1:{port}/v1", "--tokenizer", tokenizer)
    assert down.returncode == 4
    assert "cannot be reached, or broke off: Connection refused" in down.stderr


def test_what_was_measured_before_an_endpoint_failed_is_kept(tokenizer: Path, run_qtk, tmp_path: Path) -> None:
    def answer(body: Body) -> Reply:
        if len(body["prompt"]) == 16:
            return Reply(events=({"choices": [{"text": "a", "finish_reason": None}]},), hang=True)
        return counted(body)

    with fake_endpoint(answer) as fake:
        done = asked(run_qtk, fake, tokenizer, "-o", tmp_path / "latency", "--patience", "0.2", shapes="8/4,16/4")
    assert done.returncode == 4
    assert "8/4" in done.stdout
    assert "16/4 could not be measured" in done.stderr
    stored = json.loads((tmp_path / "latency" / "result.json").read_text())
    assert [shape["input_len"] for shape in stored["engines"][0]["shapes"]] == [8]
    assert len(stored["failures"]) == 1


def test_the_key_is_sent_and_written_nowhere(engine: Path, tmp_path: Path, run_qtk) -> None:
    with served(engine, ServeOptions(port=0, model_name="tiny"), "sesame") as server:
        words = ("bench", "latency", f"{server.address}/v1", "--tokenizer", engine, "--shapes", "8/4", *QUICK)
        assert run_qtk(*words).returncode == 2
        done = run_qtk(*words, "-o", tmp_path / "latency", env={"QTK_API_KEY": "sesame"})
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in (tmp_path / "latency").iterdir())
    assert "sesame" not in written + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("http://",), "is not the address of an endpoint"),
        (("http://me:secret@127.0.0.1/v1",), "give the key in QTK_API_KEY"),
        (("engine", "--model", "a"), "need the address of one"),
        (("http://127.0.0.1:1/v1", "--concurrency", "1,x,0"), "not 'x', '0'"),
        (("http://127.0.0.1:1/v1", "--rate", "inf"), "--rate takes numbers above 0"),
        (("http://127.0.0.1:1/v1", "--max-ttft", "5"), "give --concurrency or --rate"),
        (("http://127.0.0.1:1/v1", "--plot", "a.svg"), "give --concurrency or --rate"),
        (("http://127.0.0.1:1/v1", "--rate", "1", "--plot", "a.png"), "ends in .svg"),
    ],
)
def test_wrong_options_are_named_before_anything_is_asked(run_qtk, words: tuple[str, ...], says: str) -> None:
    done = run_qtk("bench", "latency", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "secret" not in done.stderr


def test_a_tokenizer_is_needed_and_can_be_the_models_own(tokenizer: Path, run_qtk) -> None:
    with fake_endpoint(counted) as fake:
        none = run_qtk("bench", "latency", fake.address, "--shapes", "8/4", *QUICK)
    assert none.returncode == 2
    assert "Prompts of exact length need the tokenizer of 'fake'" in none.stderr
    with fake_endpoint(counted, (str(tokenizer),)) as fake:
        own = run_qtk("bench", "latency", fake.address, "--shapes", "8/4", *QUICK)
    assert own.returncode == 0, own.stderr


def test_token_times_are_those_of_pieces_spread_evenly() -> None:
    exact = StreamedAnswer((0.5, 0.6, 0.9), 1.0, 3, 8)
    assert token_times(exact) == [0.5, 0.6, 0.9]
    joined = StreamedAnswer((0.5, 0.9), 1.0, 5, 8)
    assert token_times(joined) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert token_times(StreamedAnswer((), 1.0, 0, 8)) == [1.0]
    assert token_times(StreamedAnswer((0.5, 0.9), 1.0, None, 8)) == [0.5, 0.9]
    assert times_between(joined) == pytest.approx([0.1] * 4)
    assert times_between(StreamedAnswer((0.9,), 1.0, 5, 8)) == [0.2] * 4
    assert times_between(StreamedAnswer((), 1.0, 4, 8)) == [0.25] * 3
    assert times_between(StreamedAnswer((0.9,), 1.0, 1, 8)) == []


def test_prompts_have_the_length_they_should(tokenizer: Path) -> None:
    read, random = TextTokenizer(tokenizer), np.random.default_rng(0)
    ids = random_ids(read, random, 300)
    assert len(ids) == 300
    assert min(ids) >= 2, "0 and 1 are special"
    for length in (1, 7, 64):
        assert len(read.encode(random_text(read, random, length))) == length


def test_addresses_and_levels() -> None:
    assert [is_address(text) for text in ("http://a/v1", "https://a", "engine", "./http:")] == [
        True,
        True,
        False,
        False,
    ]
    assert Endpoint("http://127.0.0.1:8000/v1/").path("/models") == "/v1/models"
    assert LoadOptions(concurrency="1, 2,8").clients() == [1, 2, 8]
    assert LoadOptions(rate="0.5,2").rates() == [0.5, 2.0]
    assert LoadOptions().clients() == []
    with pytest.raises(InputError, match="whole numbers"):
        LoadOptions(concurrency="1.5").clients()
