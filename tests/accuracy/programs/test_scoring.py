"""`qtk bench accuracy --generations`: real programs in a real sandbox, from the command line."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.scoring import Retried, Scorer, retried
from qtk.bench.accuracy.results.result import read_result
from qtk.bench.accuracy.suites.suites import load_suite, suite_tasks
from qtk.bench.accuracy.suites.tasks import read_rows
from qtk.bench.accuracy.task import Task
from qtk.checkpoint.manifest import read_manifest
from qtk.errors import MachineError
from qtk.sandbox.job import ProgramOutcome
from qtk.sandbox.pool import choose_level

COMMANDS = {"python": (), "javascript": ("node",), "cpp": ("g++",), "java": ("javac", "java"), "go": ("go",)}


ONE_EACH = [{"task_id": f"Own/{number}", "completion": "x"} for number in range(3)]


def small_suite(folder: Path) -> Path:
    """A suite of three tasks of our own, in HumanEval's layout."""
    rows = [
        {
            "task_id": f"Own/{number}",
            "prompt": f"def f{number}(x):\n",
            "entry_point": f"f{number}",
            "canonical_solution": f"    return x + {number}\n",
            "test": f"def check(f):\n    assert f(1) == {1 + number}\n",
        }
        for number in range(3)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = folder / "own.yaml"
    suite.write_text(
        "name: own\nsummary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
        "languages:\n  python: {file: own.jsonl, tasks: 3}\nseconds: 3\n"
    )
    return suite


def answers(folder: Path, *texts: tuple[int, str]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"task_id": f"Own/{n}", "completion": text}) + "\n" for n, text in texts))
    return path


def test_a_file_of_answers_is_scored_and_recorded(tmp_path, run_qtk):
    suite = small_suite(tmp_path)
    file = answers(
        tmp_path, (0, "    return x\n"), (0, "    return 5\n"), (1, "    import os; os._exit(0)\n"), (1, "    return (\n"),
        (2, "    while True: pass\n"), (2, "```python\ndef f2(x):\n    return x + 2\n```"),
    )  # fmt: skip
    done = run_qtk(
        "bench", "accuracy", "--suite", suite, "--data", tmp_path, "--generations", file, "--k", 1, "--k", 2, "--json",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    [score] = printed["scores"]
    assert score["tasks"] == {
        "Own/0": ["passed", "failed"], "Own/1": ["failed", "compile_error"], "Own/2": ["timeout", "passed"],
    }  # fmt: skip
    assert [round(rate["value"], 4) for rate in score["pass_at"]] == [0.3333, 0.6667]
    assert printed["sandbox"]["level"] in ("namespaces", "bubblewrap", "user-namespaces", "landlock")
    assert printed["warnings"] == read_manifest(tmp_path / "out").warnings
    assert read_result(tmp_path / "out").model_dump(mode="json").items() <= printed.items()
    lines = read_rows(tmp_path / "out" / "tasks.jsonl")
    assert len(lines) == 6
    assert {line["verdict"] for line in lines} == {"passed", "failed", "compile_error", "timeout"}
    assert run_qtk("verify", tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("lines", "words", "complaints"),
    [
        ([{"task_id": "Own/0", "completion": "x"}], (), ("Own/1", "Own/2")),
        ([{"task_id": "Own/0"}, {"generation": "x"}], (), ("row 1", "row 2")),
        (ONE_EACH, ("--k", 3), ("3 samples", "Own/0: 1")),
        (ONE_EACH, ("--k", 0), ("--k: pass@k needs a k of 1 or more, not 0",)),
        (ONE_EACH, ("--sandbox", "rlimits"), ("allow-unsandboxed",)),
    ],
    ids=["tasks without an answer", "rows without a field", "too few samples", "no such k", "not a sandbox"],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, run_qtk, lines, words, complaints):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = ("--suite", small_suite(tmp_path), "--data", tmp_path)
    done = run_qtk("bench", "accuracy", *suite, "--generations", file, *words, "-o", tmp_path / "out")
    assert done.returncode == 2
    for complaint in complaints:
        assert complaint in done.stderr
    assert not (tmp_path / "out").exists()


BROKEN = ProgramOutcome("run", 1, "exited", "", "AssertionError", False, 0.1)


def references(*names: str) -> list[Task]:
    return [Task(name, "python", "", "", "", "f") for name in names]


def test_references_that_depend_on_chance_are_tried_until_they_pass():
    """As HumanEval-X's Go/95 does, which passes four times in nine."""
    coin, ran = random.Random(5), []

    def run(tasks: Sequence[Task]) -> dict[str, ProgramOutcome]:
        ran.append([task.task_id for task in tasks])
        return {task.task_id: BROKEN for task in tasks if task.task_id == "b" and coin.random() >= 0.45}

    result = retried(run, references("a", "b", "c"))
    assert result == Retried({}, ("b",), len(ran))
    assert len(ran) > 1
    assert ran == [["a", "b", "c"], *[["b"]] * (len(ran) - 1)]


@pytest.mark.parametrize(("failing", "tries"), [("abc", 20), ("abcd", 1)], ids=["a few", "many"])
def test_references_that_never_pass_are_not_blamed_on_chance(failing, tries):
    result = retried(lambda tasks: {t.task_id: BROKEN for t in tasks if t.task_id in failing}, references(*"abcdef"))
    assert result == Retried(dict.fromkeys(failing, BROKEN), (), tries)


def test_a_language_whose_references_fail_is_refused(tmp_path, run_qtk):
    suite = small_suite(tmp_path)
    rows = read_rows(tmp_path / "own.jsonl")
    rows[1]["canonical_solution"] = "    import a_library_that_is_absent\n    return x + 1\n"
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_qtk(
        "bench", "accuracy", "--suite", suite, "--data", tmp_path, "-o", tmp_path / "out",
        "--generations", answers(tmp_path, (0, "x"), (1, "x"), (2, "x")),
    )  # fmt: skip
    assert done.returncode == 4
    assert "1 of 3 reference solutions" in done.stderr
    assert "a_library_that_is_absent" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_is_resumed_without_running_anything_twice(tmp_path, run_qtk):
    suite = small_suite(tmp_path)
    file = answers(
        tmp_path, (0, "    return x\n"), (1, "    import time; time.sleep(2.5)\n    return x + 1\n"), (2, "x")
    )
    words = ["bench", "accuracy", "--suite", suite, "--data", tmp_path, "--generations", file, "-o", tmp_path / "out"]
    words += ["--workers", 1]
    command = [sys.executable, "-m", "qtk", *map(str, words)]
    partial = tmp_path / "out.partial" / "tasks.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (partial.exists() and partial.read_text().count("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not (tmp_path / "out").exists()
    first = partial.read_text()
    partial.write_text(first + '{"suite": "ow')  # as if the machine had gone down in mid-line
    other = run_qtk(*words, "--resume", "--k", 1, "--limit", 2)
    assert other.returncode == 2
    assert "begun with another --limit" in other.stderr
    assert run_qtk(*words).returncode == 2, "without --resume it is neither continued nor thrown away"
    done = run_qtk(*words, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tasks.jsonl").read_text().startswith(first)
    assert len(read_rows(tmp_path / "out" / "tasks.jsonl")) == 3
    assert json.loads(done.stdout)["scores"][0]["tasks"]["Own/1"] == ["passed"]


@pytest.mark.parametrize("language", COMMANDS)
def test_humaneval_x_references_pass_and_stubs_do_not(shared_data, language):
    """A few tasks of every language whose commands are here; all 820 are run by bench/compare_scoring.py."""
    if absent := [command for command in COMMANDS[language] if shutil.which(command) is None]:
        pytest.skip(f"no {absent[0]}")
    suite = load_suite("humaneval-x")
    tasks = suite_tasks(suite, language, shared_data)[0]
    # Those that need libraries, where an absent one shows, are left to the full run.
    tasks = [tasks[number] for number in ((0, 32, 53) if language in ("python", "javascript") else (0, 53))]
    early = {
        "python": "    exit(0)\n",
        "javascript": "  process.exit(0)\n}\n",
        "cpp": "    exit(0);\n}\n",
        "java": "        System.exit(0); throw new RuntimeException();\n    }\n}\n",
        "go": '```go\nimport "os"\n\nfunc HasCloseElements(numbers []float64, threshold float64) bool {\n'
        "    os.Exit(0)\n    return true\n}\n```",
    }[language]
    try:
        scorer = Scorer(suite, language, level=choose_level(), rules="qtk", workers=2)
    except MachineError as error:
        pytest.skip(str(error))
    with scorer:
        scorer.check_references(tasks)
        given = [Answer(suite.name, language, tasks[0].task_id, 0, early)]
        given += [Answer(suite.name, language, tasks[0].task_id, 1, "  this is no program )(\n}\n")]
        add = next(task for task in suite_tasks(suite, language, shared_data)[0] if task.task_id.endswith("/53"))
        assert "+" in add.reference
        given += [Answer(suite.name, language, add.task_id, 2, add.reference.replace("+", "-"))]
        tasks = [*tasks, add]
        verdicts = {scored.answer.sample: scored.verdict for scored in scorer.score(tasks, given)}
    assert verdicts[0] == "failed"
    assert verdicts[1] == "compile_error"
    assert verdicts[2] == "failed"


@pytest.mark.parametrize("suite_name", ["humaneval", "mbpp", "mbpp-challenge"])
def test_python_references_pass(shared_data, suite_name):
    suite = load_suite(suite_name)
    tasks = suite_tasks(suite, "python", shared_data)[0][::10]
    with Scorer(suite, "python", level=choose_level(), rules="qtk", workers=2) as scorer:
        scorer.check_references(tasks)


def test_codefuse_rules_fail_any_output_in_javascript(shared_data):
    if shutil.which("node") is None:
        pytest.skip("no node")
    suite = load_suite("humaneval-x")
    task = suite_tasks(suite, "javascript", shared_data)[0][0]
    noisy = Answer(suite.name, "javascript", task.task_id, 0, "  console.log('debug')\n" + task.reference)
    verdicts = {}
    for rules in ("qtk", "codefuse:stored"):
        with Scorer(suite, "javascript", level=choose_level(), rules=rules, workers=1) as scorer:
            [scored] = scorer.score([task], [noisy])
            verdicts[rules] = scored.verdict
    assert verdicts == {"qtk": "passed", "codefuse:stored": "failed"}


def test_rules_of_other_harnesses_from_the_command_line(shared_data, tmp_path, run_qtk):
    """codefuse runs MBPP's challenge tests, bigcode and qtk do not; each says in the report which rules were in force."""
    tasks = suite_tasks(load_suite("mbpp"), "python", shared_data)[0]
    [task] = [task for task in tasks if task.task_id == "Python/11"]
    # The three assertions' own answers and nothing else: the challenge tests want more.
    known = {'("hello","l")': "heo", '("abcda","a")': "bcd", '("PHP","P")': "H"}
    assert all(f"remove_Occ{call}" in task.tests for call in known)
    table = ", ".join(f"{call}: {word!r}" for call, word in known.items())
    body = f"def remove_Occ(s, ch):\n    return {{{table}}}.get((s, ch))\n"
    words = ("bench", "accuracy", "--data", shared_data, "--limit", 1, "--json")
    found = {}
    for suite, rules, text in (
        ("mbpp", "none", body), ("mbpp-challenge", "none", body), ("mbpp", "codefuse", f"```python\n{body}```"),
        ("mbpp", "bigcode", f"{body}\nassert False\n"),
    ):  # fmt: skip
        file = tmp_path / "answers.jsonl"
        file.write_text(json.dumps({"task_id": "Python/11", "generation": text}) + "\n")
        out = tmp_path / f"{suite}-{rules}"
        done = run_qtk(*words, "--suite", suite, "--compat", rules, "--generations", file, "-o", out)
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        found[suite, rules] = printed["scores"][0]["tasks"]["Python/11"]
        assert printed["rules"] == {"none": "qtk", "codefuse": "codefuse:stored", "bigcode": "bigcode"}[rules]
        clock = {"none": "10 s a run", "codefuse": "120 s a run", "bigcode": "3 s a run"}[rules]
        assert clock in printed["sandbox"]["limits"]
    assert found == {
        ("mbpp", "none"): ["passed"], ("mbpp-challenge", "none"): ["failed"], ("mbpp", "codefuse"): ["failed"],
        ("mbpp", "bigcode"): ["passed"],
    }  # fmt: skip
    refused = run_qtk(
        *words, "--suite", "humaneval-x", "--compat", "bigcode", "--generations", file, "-o", tmp_path / "x"
    )
    assert refused.returncode == 2
    assert "humaneval, mbpp and multipl-e" in refused.stderr


def test_without_a_toolchain_a_language_is_named_and_never_scored_0(shared_data, tmp_path, run_qtk):
    file = tmp_path / "answers.jsonl"
    rows = [{"task_id": f"{name}/0", "generation": "x"} for name in ("Python", "JavaScript", "CPP", "Java", "Go")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty").mkdir()
    words = ("bench", "accuracy", "--data", shared_data, "--limit", 1, "--json", "--generations", file)
    nowhere = {"PATH": str(tmp_path / "empty")}
    done = run_qtk(*words, "--suite", "humaneval-x", "-o", tmp_path / "out", env=nowhere, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [score["name"] for score in printed["scores"]] == ["python"]
    for language, command in (("javascript", "node"), ("cpp", "g++"), ("java", "javac"), ("go", "go")):
        assert f"needs {command}" in printed["skipped"][f"humaneval-x {language}"]
    alone = run_qtk(*words, "--suite", "humaneval-x:js", "-o", tmp_path / "alone", env=nowhere, timeout=120)
    assert alone.returncode == 4
    assert "javascript needs node" in alone.stderr
    assert not (tmp_path / "alone").exists()


def test_a_second_run_does_not_touch_what_the_first_one_writes(tmp_path, run_qtk):
    suite = small_suite(tmp_path)
    file = answers(tmp_path, (0, "    return x\n"), (1, "    return x + 1\n"), (2, "    import time; time.sleep(2)\n"))
    words = ["bench", "accuracy", "--suite", suite, "--data", tmp_path, "--generations", file, "-o", tmp_path / "out"]
    partial = tmp_path / "out.partial" / "tasks.jsonl"
    command = [sys.executable, "-m", "qtk", *map(str, words), "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (partial.exists() and partial.read_text().count("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        try:
            for more in ((), ("--resume",)):
                second = run_qtk(*words, *more)
                assert second.returncode == 2
                assert "Another qtk command" in second.stderr
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert len(read_rows(tmp_path / "out" / "tasks.jsonl")) == 3
