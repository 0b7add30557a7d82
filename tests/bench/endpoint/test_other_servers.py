"""`qtk bench latency` and `accuracy` against vLLM and llama.cpp's server, each started by the command that a bundle holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import run_in_process
from support.other_servers import free_port, other_server, port_is_free, vllm_environment

from qtk.bench.accuracy.jsonl import read_rows

COUNT = 3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # servers take minutes to start on a busy machine
FAST = ("--method", "rtn", "--samples", 4, "--seq-len", 128)


@dataclass(frozen=True)
class Running:
    """A server that runs. model: the name that it serves; tokenizer: the directory with its model's."""

    address: str
    model: str
    tokenizer: Path


def qtk(*words: object) -> str:
    done = run_in_process([str(word) for word in words])
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Bundled:
    """A bundle, and the words of the one command that starts its server."""

    directory: Path
    command: list[str]


def bundled(smollm2: Path, parent: Path, runtime: str, *quantize: object) -> Bundled:
    qtk("quantize", smollm2, "-o", parent / "int4", *FAST, *quantize)
    out = parent / "smollm2-int4"
    made = json.loads(qtk("bundle", parent / "int4", "-o", out, "--runtime", runtime, "--json"))
    [command] = made["start"]
    return Bundled(out, shlex.split(command))


@pytest.fixture(scope="module")
def vllm(smollm2: Path, owners_python, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    program = Path(owners_python("vllm")).with_name("vllm")
    bundle = bundled(smollm2, tmp_path_factory.mktemp("vllm"), "vllm", "--group-size", 64)
    first, *words = bundle.command
    assert first == "vllm"
    port = 8000 if port_is_free(8000) else free_port()
    words += [] if port == 8000 else ["--port", str(port)]
    log, environment = bundle.directory.with_suffix(".log"), vllm_environment()
    with other_server([program, *words], port, log, environment=environment, cwd=bundle.directory) as address:
        yield Running(address, bundle.directory.name, bundle.directory)


@pytest.fixture(scope="module")
def llamacpp(smollm2: Path, owners_python, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    program = Path(owners_python("llamacpp")).with_name("llama-server")
    bundle = bundled(
        smollm2, tmp_path_factory.mktemp("llamacpp"), "llama.cpp", "--container", "gguf", "--group-size", 32
    )
    first, *words = bundle.command
    assert (first, words[-2:]) == ("llama-server", ["--port", "8080"])
    port = 8080 if port_is_free(8080) else free_port()
    words[-1] = str(port)
    log = bundle.directory.with_suffix(".log")
    with other_server([program, *words], port, log, cwd=bundle.directory) as address:
        yield Running(address, bundle.directory.name, smollm2)


@pytest.fixture(scope="module", params=["vllm", "llamacpp"])
def server(request: pytest.FixtureRequest) -> Running:
    """By the bundle's own command; on another port than its usual one where that is taken."""
    running: Running = request.getfixturevalue(request.param)
    return running


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    rows = [
        {
            "task_id": f"Own/{n}", "prompt": f"def add_{n}(x):\n    \"\"\"Return x plus {n}.\"\"\"\n",
            "entry_point": f"add_{n}", "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        }
        for n in range(COUNT)
    ]  # fmt: skip
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = "name: own\nkind: programs\nsummary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
    (folder / "own.yaml").write_text(f"{body}languages:\n  python: {{file: own.jsonl, tasks: {COUNT}}}\n")
    return folder


def test_latency_counts_what_was_asked_for(server: Running, tmp_path: Path) -> None:
    """Both take token ids and ignore_eos and say how many tokens there were: nothing has to be warned of but noise."""
    words = ("--model", server.model, "--tokenizer", server.tokenizer, "--runs", 2, "--warmups", 1, "--seconds", 0)
    out = tmp_path / "latency"
    report = json.loads(qtk("bench", "latency", server.address, *words, "--shapes", "24/8", "-o", out, "--json"))
    assert [said for said in report["warnings"] if "is noisy" not in said] == []
    [measured] = report["engines"][0]["shapes"]
    assert (measured["input_len"], measured["output_len"], measured["runs"]) == (24, 8, 2)
    assert measured["tokens_per_s"] > 0
    qtk("verify", out)


def test_latency_under_load(server: Running, tmp_path: Path) -> None:
    words = ("--model", server.model, "--tokenizer", server.tokenizer, "--runs", 2, "--seconds", 1)
    load = ("--shapes", "16/4", "--concurrency", "1,2", "-o", tmp_path / "load", "--json")
    report = json.loads(qtk("bench", "latency", server.address, *words, *load))
    assert [(level["clients"], level["failed"]) for level in report["load"]] == [(1, {}), (2, {})]
    assert all(level["requests"] >= 2 for level in report["load"])


@pytest.mark.parametrize("chat_format", ["none", "model"])
def test_programs_are_asked_for_and_run(server: Running, suite: Path, tmp_path: Path, chat_format: str) -> None:
    words = ("--model", server.model, "--suite", suite / "own.yaml", "--data", suite, "--max-new-tokens", 24)
    out = tmp_path / "scores"
    qtk("bench", "accuracy", server.address, *words, "--chat-format", chat_format, "-o", out)
    answers = read_rows(out / "generations.jsonl")
    assert [row["task_id"] for row in answers] == [f"Own/{n}" for n in range(COUNT)]
    assert all(row["generation"].strip() for row in answers)
    assert len(read_rows(out / "tasks.jsonl")) == COUNT
