"""`qtk bench latency` and `accuracy` against servers of other projects: vLLM, started as a bundle says, and llama.cpp's."""

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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # servers take minutes to start on a busy machine
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


@pytest.fixture(scope="module")
def int4(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "int4"
    qtk("quantize", smollm2, "-o", out, *FAST, "--group-size", 64)
    return out


@pytest.fixture(scope="module")
def vllm(int4: Path, owners_python, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """vLLM, by the bundle's own command; on another port than its usual one where that is taken."""
    program = Path(owners_python("vllm")).with_name("vllm")
    bundle = tmp_path_factory.mktemp("bundled") / "smollm2-int4"
    made = json.loads(qtk("bundle", int4, "-o", bundle, "--runtime", "vllm", "--json"))
    [command] = made["start"]
    first, *words = shlex.split(command)
    assert first == "vllm"
    port = 8000 if port_is_free(8000) else free_port()
    words += [] if port == 8000 else ["--port", str(port)]
    log, environment = bundle.parent / "vllm.log", vllm_environment()
    with other_server([program, *words], port, log, environment=environment, cwd=bundle) as address:
        yield Running(address, bundle.name, bundle)


@pytest.fixture(scope="module")
def llama_cpp(smollm2: Path, owners_python, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """llama.cpp's own server, with a file that we wrote."""
    program = Path(owners_python("llamacpp")).with_name("llama-server")
    place = tmp_path_factory.mktemp("gguf")
    qtk("quantize", smollm2, "-o", place / "int4", *FAST, "--backend", "llama.cpp")
    made = json.loads(qtk("bundle", place / "int4", "-o", place / "b", "--json"))
    first, *words = shlex.split(made["start"][0])
    assert first == "llama-server"
    port = 8080 if port_is_free(8080) else free_port()
    words += [] if port == 8080 else ["--port", str(port)]
    with other_server([program, *words], port, place / "llama.log", cwd=place / "b") as address:
        yield Running(address, "smollm2", place / "int4")


@pytest.fixture(scope="module", params=["vllm", "llama_cpp"])
def running(request: pytest.FixtureRequest) -> Running:
    return request.getfixturevalue(request.param)


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


def test_latency_counts_what_was_asked_for(running: Running, tmp_path: Path) -> None:
    words = ("--model", running.model, "--tokenizer", running.tokenizer, "--runs", 2, "--warmups", 1, "--seconds", 0)
    out = tmp_path / "latency"
    result = json.loads(qtk("bench", "latency", running.address, *words, "--shapes", "24/8", "-o", out, "--json"))
    print(json.dumps(result, indent=1))


def test_latency_under_load(running: Running, tmp_path: Path) -> None:
    words = ("--model", running.model, "--tokenizer", running.tokenizer, "--runs", 2, "--seconds", 1)
    out = tmp_path / "load"
    load = ("--shapes", "16/4", "--concurrency", "1,2", "-o", out, "--json")
    result = json.loads(qtk("bench", "latency", running.address, *words, *load))
    print(json.dumps(result, indent=1))


@pytest.mark.parametrize("chat_format", ["none", "model"])
def test_programs_are_asked_for_and_run(running: Running, suite: Path, tmp_path: Path, chat_format: str) -> None:
    words = ("--model", running.model, "--suite", suite / "own.yaml", "--data", suite, "--max-new-tokens", 24)
    out = tmp_path / "scores"
    qtk("bench", "accuracy", running.address, *words, "--chat-format", chat_format, "-o", out)
    answers = read_rows(out / "generations.jsonl")
    assert [row["task_id"] for row in answers] == [f"Own/{n}" for n in range(COUNT)]
    assert all(row["generation"].strip() for row in answers)
    assert len(read_rows(out / "tasks.jsonl")) == COUNT
