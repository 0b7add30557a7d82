"""`qtk bench latency` and `accuracy` against vLLM, started by the command that a bundle holds."""

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


def test_latency_counts_what_was_asked_for(vllm: Running, tmp_path: Path) -> None:
    """vLLM takes token ids and ignore_eos and says how many tokens there were: nothing has to be warned of but noise."""
    words = ("--model", vllm.model, "--tokenizer", vllm.tokenizer, "--runs", 2, "--warmups", 1, "--seconds", 0)
    out = tmp_path / "latency"
    report = json.loads(qtk("bench", "latency", vllm.address, *words, "--shapes", "24/8", "-o", out, "--json"))
    assert [said for said in report["warnings"] if "is noisy" not in said] == []
    [measured] = report["engines"][0]["shapes"]
    assert (measured["input_len"], measured["output_len"], measured["runs"]) == (24, 8, 2)
    assert measured["tokens_per_s"] > 0
    qtk("verify", out)


def test_latency_under_load(vllm: Running, tmp_path: Path) -> None:
    words = ("--model", vllm.model, "--tokenizer", vllm.tokenizer, "--runs", 2, "--seconds", 1)
    load = ("--shapes", "16/4", "--concurrency", "1,2", "-o", tmp_path / "load", "--json")
    report = json.loads(qtk("bench", "latency", vllm.address, *words, *load))
    assert [(level["clients"], level["failed"]) for level in report["load"]] == [(1, {}), (2, {})]
    assert all(level["requests"] >= 2 for level in report["load"])


@pytest.mark.parametrize("chat_format", ["none", "model"])
def test_programs_are_asked_for_and_run(vllm: Running, suite: Path, tmp_path: Path, chat_format: str) -> None:
    words = ("--model", vllm.model, "--suite", suite / "own.yaml", "--data", suite, "--max-new-tokens", 24)
    out = tmp_path / "scores"
    qtk("bench", "accuracy", vllm.address, *words, "--chat-format", chat_format, "-o", out)
    answers = read_rows(out / "generations.jsonl")
    assert [row["task_id"] for row in answers] == [f"Own/{n}" for n in range(COUNT)]
    assert all(row["generation"].strip() for row in answers)
    assert len(read_rows(out / "tasks.jsonl")) == COUNT
