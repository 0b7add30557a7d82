"""What a server does at its limits: a full queue, a wrong key, an engine that fails, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from support.executors import changed
from support.served import Served, served

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.decoding import GREEDY, Decoding
from qtk.engines.sessions.executor import Forward
from qtk.engines.sessions.session import DecoderSession, EngineSession, Generation, OnToken
from qtk.serving.options import KEY_VARIABLE, ServeOptions

ONE_ROW = ServeOptions(port=0, model_name="tiny", rows=1, max_waiting=1)


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("limits") / "engine"
    options = BuildOptions(accuracy_level=0, max_input_len=32, max_output_len=400, max_batch_size=2)
    build_engine(tiny(), out, options)
    return out


@pytest.fixture
def session(engine: Path) -> Iterator[DecoderSession]:
    with DecoderSession.open(engine, 1) as opened:
        yield opened


class Held:
    """Holds an engine in its first run until `go` is set. prompts: the tokens of runs that begin a row, in their order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.prompts: list[list[int]] = []

    def __call__(self, logits: np.ndarray, forward: Forward) -> np.ndarray:
        if forward.position_ids[0, 0] == 0:
            self.prompts.append(forward.input_ids[0].tolist())
        self.go.wait(60)
        return logits


def ask(server: Served, **settings: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0, "ignore_eos": True, **settings}
    return httpx.post(f"{server.address}/v1/completions", json=body, timeout=60)


def test_a_full_queue_answers_429_and_the_others_are_served(session: DecoderSession) -> None:
    held = Held()
    with served(changed(session, held), ONE_ROW) as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, server)
        server.wait_for("qtk_rows_running", 1)
        second = threads.submit(ask, server)
        server.wait_for("qtk_rows_waiting", 1)
        refused = ask(server)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            server.openai().completions.create(model="tiny", prompt="a", stream=True)
        # A request of more texts than may ever wait is refused too, and nothing of it stays behind.
        assert ask(server, n=3).status_code == 429
        held.go.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert ask(server).status_code == 200


def test_a_client_that_leaves_the_queue_makes_room(session: DecoderSession) -> None:
    held = Held()
    with served(changed(session, held), ONE_ROW) as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, server)
        server.wait_for("qtk_rows_running", 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.address}/v1/completions",
                json={"model": "tiny", "prompt": "b"},
                timeout=httpx.Timeout(5, read=0.2),
            )
        server.wait_for("qtk_requests_cancelled_total", 1)
        third = threads.submit(ask, server)
        server.wait_for("qtk_rows_waiting", 1)
        held.go.set()
        assert [first.result().status_code, third.result().status_code] == [200, 200]


def test_clients_take_turns(session: DecoderSession) -> None:
    """Who has sent three requests waits for nobody; the second client does not wait for all of them either."""
    held, answers = Held(), []
    options = ServeOptions(port=0, model_name="tiny", rows=1, max_waiting=8)
    with served(changed(session, held), options) as server, ThreadPoolExecutor(6) as threads:
        for number, user in enumerate(["busy", "busy", "busy", "busy", "other"]):
            answers.append(threads.submit(ask, server, user=user, prompt="b" if user == "other" else "a"))
            server.wait_for("qtk_rows_running", 1)
            server.wait_for("qtk_rows_waiting", number)
        held.go.set()
    assert [answer.result().status_code for answer in answers] == [200] * 5
    # As the engine saw them: the clients' threads may hear of their answers in another order.
    others = [prompt != held.prompts[0] for prompt in held.prompts]
    assert (len(others), sum(others)) == (5, 1), held.prompts
    assert others.index(True) < 4, others


def test_a_key_is_asked_for_and_never_told(engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(engine, ServeOptions(port=0, model_name="tiny"), "sesame") as server:
        assert ask(server).status_code == 401
        assert httpx.get(f"{server.address}/metrics").status_code == 401
        with pytest.raises(openai.AuthenticationError):
            server.openai("sesam").models.list()
        assert httpx.get(f"{server.address}/health").status_code == 200
        assert server.openai("sesame").completions.create(model="tiny", prompt="a").choices
    assert "sesam" not in "".join(capfd.readouterr())


def test_an_engine_that_fails_answers_ends_and_says_why(session: DecoderSession) -> None:
    def fail(logits: np.ndarray, forward: Forward) -> np.ndarray:
        raise RuntimeError("the device is gone")

    with served(changed(session, fail), ONE_ROW) as server:
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        server.thread.join(60)
    assert [str(error) for error in server.errors] == ["the device is gone"]


class WholeCalls(EngineSession):
    """An engine whose runtime has a loop of its own: it takes calls and gives tokens."""

    def __init__(self, inner: DecoderSession) -> None:
        super().__init__(inner.directory, inner.description)
        self._inner = inner

    def generate(
        self, prompts, max_new_tokens: int, decoding: Decoding = GREEDY, on_token: OnToken | None = None
    ) -> Generation:
        return self._inner.generate(prompts, max_new_tokens, decoding, on_token)


def test_a_runtime_with_a_loop_of_its_own_serves_one_after_the_other(session: DecoderSession) -> None:
    ids = session.tokenizer.encode("a", special=True)
    whole = session.generate([ids], 9, Decoding(ignore_eos=True)).tokens[0]
    drawn = session.generate([ids] * 2, 9, Decoding(0.8, seed=4, ignore_eos=True)).tokens
    with served(WholeCalls(session)) as server, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: ask(server, max_tokens=9), range(3)))
        texts = {answer.json()["choices"][0]["text"] for answer in answers}
        assert texts == {session.tokenizer.decode(whole)}
        several = ask(server, max_tokens=9, n=2, seed=4, temperature=0.8).json()["choices"]
        assert several[0]["text"] == session.tokenizer.decode(drawn[0])
        refused = ask(server, logprobs=1)
        assert "gives no log probabilities" in refused.json()["error"]["message"]


def test_more_rows_than_the_engine_has_are_refused(engine: Path, run_qtk) -> None:
    answer = run_qtk("serve", engine, "--rows", 3, "--port", 0)
    assert answer.returncode == 2
    assert "--rows 3: the engine takes 2 at once" in answer.stderr


def test_an_address_that_is_taken_is_named(engine: Path, run_qtk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run_qtk("serve", engine, "--port", port)
    assert answer.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in answer.stderr


def test_what_is_not_an_engine_is_refused(tmp_path: Path, run_qtk) -> None:
    answer = run_qtk("serve", tmp_path, "--port", 0)
    assert answer.returncode == 2


def test_an_engine_without_a_tokenizer_is_refused(tmp_path: Path, make_tiny, run_qtk) -> None:
    model = make_tiny(tmp_path / "model", "llama", num_hidden_layers=1)
    build_engine(model, tmp_path / "engine", BuildOptions(accuracy_level=0, max_input_len=8, max_output_len=8))
    answer = run_qtk("serve", tmp_path / "engine", "--port", 0)
    assert answer.returncode == 2
    assert "has no tokenizer" in answer.stderr


def term_once(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


def interrupt_once(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(("stop", "code"), [(term_once, 0), (interrupt_once, 130)])
def test_a_server_that_is_stopped_finishes_what_it_began(
    engine: Path, stop: Callable[[subprocess.Popen[str]], None], code: int
) -> None:
    with command(engine) as process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        address = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
        with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as client:
            stream = client.completions.create(
                model="engine", prompt="a", max_tokens=390, stream=True, extra_body={"ignore_eos": True}
            )
            pieces = [next(iter(stream))]
            stop(process)
            pieces += list(stream)
        _, stderr = process.communicate(timeout=60)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "sesame" not in line + stderr


def test_a_second_interrupt_waits_for_nobody(engine: Path) -> None:
    """A client that has sent half a request keeps a stopping server waiting."""
    with command(engine) as process:
        address = re.findall(r"http://(127\.0\.0\.1:\d+)", process.stdout.readline())[0]  # type: ignore[union-attr]
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sesame\r\nContent-Length: 99\r\n\r\n{"
            client.sendall(head.encode())
            interrupt_once(process)
            with pytest.raises(httpx.ConnectError):  # it has heard the first once it listens no more
                for _ in range(3000):
                    httpx.get(f"http://{address}/health")
            assert process.poll() is None
            interrupt_once(process)
            _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


def command(engine: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qtk", "serve", str(engine), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_VARIABLE: "sesame"},
    )
