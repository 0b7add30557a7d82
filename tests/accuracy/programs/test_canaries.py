"""Canaries: tasks that no answer can solve, made of those of the suite. What passes them is reported, and fails gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.canaries import canaries
from qtk.bench.accuracy.results.result import read_result
from qtk.bench.accuracy.task import Task
from qtk.release.gates import Evidence, Gate, judge

HONEST = "    return x + NUMBER\n"
# It gives the second of two calls what the changed assertion asks for: no honest answer does.
FORGED = "    f0.calls = getattr(f0, 'calls', -1) + 1\n    return 1 + f0.calls\n"


def suite(folder: Path) -> Path:
    rows = [
        {
            "task_id": f"Own/{number}",
            "prompt": f"def f{number}(x):\n",
            "entry_point": f"f{number}",
            "canonical_solution": HONEST.replace("NUMBER", str(number)),
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
        }
        for number in range(4)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "own.yaml"
    file.write_text(
        "name: own\nsummary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
        "languages:\n  python: {file: own.jsonl, tasks: 4}\nseconds: 3\n"
    )
    return file


def scored(folder: Path, run_qtk, first: str):
    texts = [first, *(HONEST.replace("NUMBER", str(number)) for number in (1, 2, 3))]
    lines = [json.dumps({"task_id": f"Own/{n}", "completion": text}) for n, text in enumerate(texts)]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    words = ("--suite", suite(folder), "--data", folder, "--generations", folder / "answers.jsonl", "--canaries", 9)
    return run_qtk("bench", "accuracy", *words, "-o", folder / "out")


def judged(folder: Path) -> dict[str, str]:
    result = read_result(folder / "out")
    evidence = Evidence([("int4", result)], [], [], [], [], [], [])
    gates = [Gate(metric="canaries", at_most=0), Gate(metric="pass-rate", at_least=1)]
    return {found.metric: found.verdict for found in judge("run", gates, evidence).results}


def test_honest_answers_pass_none(tmp_path, run_qtk):
    done = scored(tmp_path, run_qtk, HONEST.replace("NUMBER", "0"))
    assert done.returncode == 0, done.stderr
    [score] = read_result(tmp_path / "out").scores
    assert score.canaries.model_dump() == {"tasks": 4, "programs": 4, "passed": []}
    assert score.verdicts == {"passed": 4}
    assert "canaries: 0 of 4 passed" in " ".join(done.stdout.split())
    assert judged(tmp_path) == {"canaries": "passed", "pass-rate": "passed"}


def test_a_pass_is_reported_and_fails_the_gates(tmp_path, run_qtk):
    done = scored(tmp_path, run_qtk, FORGED)
    assert done.returncode == 0, done.stderr
    [score] = read_result(tmp_path / "out").scores
    assert score.canaries.passed == ["Own/0"]
    assert "contradict themselves" in done.stderr
    assert "Own/0" in done.stderr
    assert judged(tmp_path) == {"canaries": "failed", "pass-rate": "failed"}


def test_the_same_seed_makes_the_same_canaries():
    tasks = [Task(f"T/{n}", "python", "", "", f"assert f({n}) == {n}\n", "f") for n in range(50)]
    first, again, other = (canaries(tasks, 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [canary.tests for canary in canaries(tasks[:1], 5, 0)] == ["assert f(0) == 0\nassert f(0) == 1\n"]
    assert canaries([Task("T/0", "python", "", "", "f()\n", "f")], 5, 0) == []


@pytest.mark.parametrize(
    ("language", "tests", "wrong"),
    [
        ("cpp", "assert (issame(f({1,2}), {3, 4}));", "assert (issame(f({1,2}), {4, 4}));"),
        ("cpp", "assert (f(\"a,b\") == \"c\");", "assert (f(\"a,b\") == \"qtkc\");"),
        ("java", "    s.f(3) == 4,", "    s.f(3) == 5,"),
        (
            "d",
            "        assert(!result[1].isNull && result[1].get == 2L);",
            "        assert(!result[1].isNull && result[1].get == 3L);",
        ),
        ("java", "    s.f(List.of(1)).equals(List.of(2)),", "    s.f(List.of(1)).equals(List.of(3)),"),
        ("go", "    assert.Equal(true, f([]int{1}))", "    assert.Equal(false, f([]int{1}))"),
        ("javascript", "console.assert(f([1]) === 2)", "console.assert(f([1]) === 3)"),
        ("ruby", "assert_equal([], candidate.call([1]))\nassert_equal([2], candidate.call([1]))",
         "assert_equal([3], candidate.call([1]))"),
        ("racket", "(check-within (candidate (list )) (list ) 0.001)\n(check-within (candidate 1) 2 0.001)",
         "(check-within (candidate 1) 3 0.001)"),
        ("bash", '[[ $(candidate "1") = "true" ]]', '[[ $(candidate "1") = "false" ]]'),
        ("perl", "if(eq_deeply($candidate->([1, 2]),[2])) {", "if(eq_deeply($candidate->([1, 2]),[3])) {"),
    ],
)  # fmt: skip
def test_the_value_that_is_expected_is_changed_and_nothing_else(language, tests, wrong):
    flip = LANGUAGES[language].toolchain.assertion_form.first(tests, "f")
    assert flip.wrong == wrong
