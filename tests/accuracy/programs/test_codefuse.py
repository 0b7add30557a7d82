"""`--compat codefuse` from the command line: what is stored already, and what goes through a processor that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.bench.accuracy.results.result import read_result

BODY = "    return x + 1\n"
WHOLE = f"def f(x):\n{BODY}"


@pytest.fixture
def words(tmp_path: Path) -> tuple[object, ...]:
    """The options of a suite with one task."""
    task = {
        "task_id": "Own/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": BODY,
        "test": "def check(f):\n    assert f(1) == 2\n",
    }  # fmt: skip
    (tmp_path / "own.jsonl").write_text(json.dumps(task) + "\n")
    (tmp_path / "own.yaml").write_text(
        "name: own\nsummary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
        "languages:\n  python: {file: own.jsonl, tasks: 1}\n"
    )
    return ("bench", "accuracy", "--suite", tmp_path / "own.yaml", "--data", tmp_path, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("compat", "rules", "verdicts"),
    [
        ("codefuse", "codefuse:stored", ["passed", "passed"]),
        ("codefuse:13b", "codefuse:13b", ["passed", "passed"]),
        ("codefuse:llama34b", "codefuse:llama34b", ["passed", "compile_error"]),
    ],
)
def test_a_body_and_a_whole_function_by_each_of_the_rules(words, tmp_path, run_qtk, compat, rules, verdicts):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"task_id": "Own/0", "generation": [BODY, WHOLE]}) + "\n")
    done = run_qtk(*words, "--compat", compat, "--generations", file, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["rules"] == rules
    assert printed["scores"][0]["tasks"]["Own/0"] == verdicts


def test_a_models_answers_want_a_processor_by_name(words, tmp_path, run_qtk):
    done = run_qtk(*words, tmp_path, "--compat", "codefuse")
    assert done.returncode == 2
    assert "--compat codefuse:13b" in done.stderr
    assert "--compat codefuse:llama34b" in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_earlier_versions_say_by_which_rules_they_were_made(words, tmp_path, run_qtk):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"task_id": "Own/0", "generation": BODY}) + "\n")
    assert run_qtk(*words, "--generations", file).returncode == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({**result, "rules": "codefuse"}))
    assert read_result(tmp_path / "old.json").rules == "codefuse:llama34b"
