"""`qtk bench accuracy` of a model at an endpoint: what it is asked, and what is kept of its answers."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_endpoint import Body, FakeEndpoint, Reply, fake_endpoint, refusal
from support.served import served

from qtk.checkpoint.manifest import read_manifest
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.serving.options import ServeOptions

TASKS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tasks in HumanEval's form: to add a number."""
    directory = tmp_path_factory.mktemp("data")
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def add{n}(x):\n",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"add{n}",
        }
        for n in range(TASKS)
    ]
    with gzip.open(directory / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return directory


def number_of(body: Body) -> int:
    text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return int(text.partition("def add")[2].partition("(")[0])


def right(body: Body) -> Reply:
    """The right program, and then more of which nothing is to be heard."""
    pieces = ["\n    return", f" x + {number_of(body)}", "\n", "\nprint('no", " end')"]
    chat = "messages" in body
    if chat:
        pieces = [
            "```python\n",
            f"def add{number_of(body)}(x):\n",
            f"    return x + {number_of(body)}\n",
            "```",
            " Done.",
        ]
    events = [{"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]} for piece in pieces]
    return Reply(events=(*events, "[DONE]"))


def score(run_qtk: Any, fake: FakeEndpoint, data: Path, *more: object) -> Any:
    words = ("--suite", "humaneval", "--data", data, "--allow-unsandboxed", "--max-new-tokens", "40")
    return run_qtk("bench", "accuracy", fake.address, *words, *more, "-o", "scores", "--json", cwd=data)


@pytest.mark.parametrize("chat_format", ["none", "model", "codefuse"])
def test_programs_are_asked_for_and_scored(data: Path, tmp_path: Path, run_qtk, chat_format: str) -> None:
    with fake_endpoint(right) as fake:
        done = score(run_qtk, fake, data, "--chat-format", chat_format, "--overwrite")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    [scored] = result["scores"]
    assert scored["verdicts"] == {"passed": TASKS}
    assert (result["model"], result["chat_format"]) == (f"fake at {fake.address}", chat_format)
    assert {tuple(body) for body in fake.asked} == {
        ("model", "max_tokens", "temperature", "stream", "messages" if chat_format == "model" else "prompt")
    }
    assert len(fake.asked) == TASKS
    if chat_format == "codefuse":
        assert fake.asked[0]["prompt"].startswith("<s>human\n# language: Python\n")
    assert read_manifest(data / "scores").options["endpoint"] == f"fake at {fake.address}"
    verified = run_qtk("verify", data / "scores")
    assert verified.returncode == 0, verified.stderr


def test_samples_have_seeds_of_their_own(data: Path, run_qtk) -> None:
    with fake_endpoint(right) as fake:
        done = score(
            run_qtk, fake, data, "--samples", 2, "--temperature", 0.8, "--top-p", 0.9, "--limit", 2, "--overwrite"
        )
        again = score(
            run_qtk, fake, data, "--samples", 2, "--temperature", 0.8, "--top-p", 0.9, "--limit", 2, "--overwrite"
        )
    assert (done.returncode, again.returncode) == (0, 0)
    seeds = [(number_of(body), body["seed"]) for body in fake.asked]
    assert len(set(seeds[:4])) == 4
    assert sorted(seeds[:4]) == sorted(seeds[4:])
    assert {(body["temperature"], body["top_p"]) for body in fake.asked} == {(0.8, 0.9)}


def test_a_busy_endpoint_is_asked_again(data: Path, run_qtk) -> None:
    numbers = itertools.count()

    def answer(body: Body) -> Reply:
        return refusal(429, "busy", Retry_After="0") if next(numbers) % 3 == 0 else right(body)

    with fake_endpoint(answer) as fake:
        done = score(run_qtk, fake, data, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(fake.asked) > TASKS


def test_what_was_answered_before_the_endpoint_failed_is_kept(data: Path, run_qtk) -> None:
    answered, most = threading.Semaphore(3), "--batch-size"

    def answer(body: Body) -> Reply:
        return right(body) if answered.acquire(blocking=False) else refusal(503, "restarting")

    with fake_endpoint(answer) as fake:
        stopped = score(run_qtk, fake, data, most, 1, "--overwrite")
        assert stopped.returncode == 4
        assert "status 503: restarting" in stopped.stderr
        assert "--resume goes on from there" in stopped.stderr
        for _ in range(TASKS):
            answered.release()
        fake.asked.clear()
        done = score(run_qtk, fake, data, most, 1, "--overwrite", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(fake.asked) == TASKS - 3
    assert json.loads(done.stdout)["scores"][0]["verdicts"] == {"passed": TASKS}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--suite", "likelihood:python"), 2, "An endpoint is asked for texts only"),
        (("--samples", "2"), 2, "needs a --temperature"),
        (("--model", "other"), 2, "does not serve 'other'; it serves fake"),
    ],
)
def test_what_an_endpoint_cannot_be_asked(data: Path, run_qtk, words: tuple[str, ...], code: int, says: str) -> None:
    with fake_endpoint(right) as fake:
        done = score(run_qtk, fake, data, *words, "--overwrite")
    assert done.returncode == code
    assert says in done.stderr
    assert fake.asked == []


def html(_: Body) -> Reply:
    return Reply(content=b"<html>", kind="text/html")


@pytest.mark.parametrize("answer", [html, lambda body: Reply(events=([1],)), lambda body: Reply(events=("nothing",))])
def test_an_endpoint_that_is_not_like_openais(data: Path, run_qtk, answer: Callable[[Body], Reply]) -> None:
    with fake_endpoint(answer) as fake:
        done = score(run_qtk, fake, data, "--overwrite")
    assert done.returncode == 2
    assert "OpenAI's API" in done.stderr


def test_the_model_options_of_an_endpoint_need_an_address(data: Path, run_qtk) -> None:
    done = run_qtk("bench", "accuracy", data, "--model", "a", "-o", "scores", cwd=data)
    assert done.returncode == 2
    assert "need the address of one" in done.stderr


def test_a_served_engine_gives_the_answers_that_it_gives_here(data: Path, tiny, tmp_path: Path, run_qtk) -> None:
    build_engine(tiny(), tmp_path / "engine", BuildOptions(accuracy_level=0, max_input_len=96, max_output_len=40))
    words = ("--suite", "humaneval", "--data", data, "--allow-unsandboxed", "--max-new-tokens", "12")
    here = run_qtk("bench", "accuracy", tmp_path / "engine", *words, "-o", tmp_path / "here")
    assert here.returncode == 0, here.stderr
    with served(tmp_path / "engine", ServeOptions(port=0, model_name="tiny")) as server:
        there = run_qtk("bench", "accuracy", f"{server.address}/v1", *words, "-o", tmp_path / "there")
    assert there.returncode == 0, there.stderr

    def answers(place: str) -> list[str]:
        return sorted((tmp_path / place / "generations.jsonl").read_text().splitlines())

    assert answers("here") == answers("there")
