"""MultiPL-E: its data as it is, answers of every shape in every language, and verdicts by the real interpreters."""

from __future__ import annotations

import json
import shutil

import pytest

from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.compatibility import bigcode_source
from qtk.bench.accuracy.programs.extraction import certain_end, continuation, extract
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import data_file, load_suite, suite_tasks
from qtk.bench.accuracy.suites.tasks import read_rows
from qtk.bench.accuracy.task import Task
from qtk.sandbox.pool import choose_level

SUITE = load_suite("multipl-e")
ADD = "HumanEval_53_add"
LEADERBOARD = ("java", "javascript", "cpp", "php", "julia", "d", "lua", "r", "racket", "rust", "swift")
# What a model may put behind a function, and another function that the first does not use.
BEHIND = {
    **dict.fromkeys(("java", "javascript", "cpp", "d", "rust", "swift", "go"), "\n\n// And so on.\n"),
    **dict.fromkeys(("r", "perl", "ruby", "bash", "julia"), "\n\n# And so on.\n"),
    "php": "\n\n// And so on.\n",
    "lua": "\n\n-- And so on.\n",
    "racket": "\n\n; And so on.\n",
}
EARLY_EXIT = {
    "java": "        System.exit(0); return 0;",
    "javascript": "  process.exit(0);\n}",
    "cpp": "    std::exit(0);",
    "php": "    exit(0);\n}",
    "julia": "    exit(0)\nend",
    "d": "{\n    import core.stdc.stdlib : exit; exit(0); return 0;\n}",
    "lua": "  os.exit(0)\nend",
    "r": "\n  quit(status = 0)\n}",
    "racket": "  (exit 0))",
    "rust": "    std::process::exit(0)",
    "swift": "    exit(0)",
    "go": '```go\nimport "os"\n\nfunc add(x int, y int) int {\n    os.Exit(0)\n    return 0\n}\n```',
    "perl": "    exit 0;\n}",
    "ruby": "  exit(0)\nend",
    "bash": "    kill -9 $$",
}


def solved(data, language: str) -> list[Task]:
    return [task for task in suite_tasks(SUITE, language, data)[0] if task.reference]


def whole_function(task: Task) -> str:
    """The solution as a model writes it that repeats the function from its first line on."""
    header = [line for line in task.prompt.split("\n") if line.strip()]
    start = next(n for n, line in enumerate(header) if task.entry in line and not line.lstrip().startswith(_SIGNS))
    body = task.reference.rstrip("\n") + (f"\n{task.closing}" if task.closing else "")
    return "\n".join(header[start:]) + "\n" + body + "\n"


_SIGNS = ("//", "#", "--", ";", ">>>", "*")


@pytest.mark.parametrize("language", SUITE.languages)
def test_the_data_is_read_without_a_loss(shared_data, language):
    tasks, path = suite_tasks(SUITE, language, shared_data)
    rows = read_rows(path)
    assert len(tasks) == SUITE.languages[language].tasks == len(rows)
    assert len(solved(shared_data, language)) == 4
    for task, row in zip(tasks, rows, strict=True):
        assert task.closing + task.tests == row["tests"]
        assert task.entry in row["tests"]
        # That harness's program: stripped prompt, completion up to its first stop string, line break, tests.
        program = bigcode_source(SUITE, task, "BODY" + row["stop_tokens"][-1] + "more") + task.tests
        assert program == row["prompt"].strip() + "BODY\n" + row["tests"]


@pytest.mark.parametrize("language", SUITE.languages)
def test_answers_of_every_shape_give_one_function(shared_data, language):
    for task in solved(shared_data, language):
        body = task.reference.rstrip("\n") + "\n"
        closed = body + (f"{task.closing}\n" if task.closing else "")
        kept = continuation(task, closed)
        assert kept.split() == closed.split()
        assert continuation(task, closed + BEHIND[language] + "x\n").split() == closed.split()
        assert certain_end(SUITE, task, closed + "\n(print x)\n", chat=False)
        assert not certain_end(SUITE, task, body[: len(body) // 2], chat=False)
        if task.closing:  # as other harnesses leave it: cut before the closing
            assert continuation(task, body).split() == closed.split()
        written = whole_function(task)
        fenced = extract(SUITE, task, f"Sure:\n```{language}\n{written}```\nDone.")
        plain = extract(SUITE, task, written)
        assert (fenced.how, plain.how) == ("fenced", "whole")
        assert fenced.source.split() == plain.source.split()
        assert "Done." not in fenced.source


def test_helpers_stay_and_what_the_tests_bring_goes(shared_data):
    def source(language: str, answer: str) -> str:
        [task] = [task for task in solved(shared_data, language) if task.task_id == ADD]
        return extract(SUITE, task, answer).source

    rust = source(
        "rust", '```rust\nfn add(x: isize, y: isize) -> isize { x + y }\nfn main() { println!("{}", 1); }\n```'
    )
    assert "fn main" not in rust
    java = source(
        "java",
        "```java\nimport java.util.*;\npublic class Calculator {\n  public static long add(long x, long y) { return x + y; }\n"
        "  public static void main(String[] a) { System.out.println(1); }\n}\nclass Other {}\n```",
    )
    assert "class Problem {" in java
    assert java.index("class Other") < java.index("class Problem")
    assert "main" not in java
    assert java.count("{") == java.count("}") + 1
    php = source("php", "```php\n<?php\nfunction add($x, $y) {\n    return $x + $y;\n}\n```")
    assert php.count("<?php") == 1
    racket = source("racket", "  (plus x y))\n\n(define (plus a b)\n  (+ a b))\n\n(define (other a)\n  a)\n")
    assert "(define (plus a b)" in racket
    assert "other" not in racket
    lua = source(
        "lua", "  return plus(x, y)\nend\n\nfunction plus(a, b)\n  return a + b\nend\n\nprint(add(1, 2))\nx = 1\n"
    )
    assert "function plus" in lua
    assert "print" not in lua


# The tests of HumanEval-X run these toolchains.
ELSEWHERE = ("cpp", "java", "go", "javascript")


@pytest.mark.parametrize(
    "language",
    [pytest.param(name, marks=pytest.mark.slow) if name in ELSEWHERE else name for name in SUITE.languages],
)
def test_right_answers_pass_and_others_do_not(shared_data, language):
    """Our solutions pass in the sandbox; a wrong one, an early exit and what is not a program do not."""
    tasks = solved(shared_data, language)
    [add] = [task for task in tasks if task.task_id == ADD]
    wrong = add.reference.replace("+", "-")
    assert wrong != add.reference
    try:
        scorer = Scorer(SUITE, language, level=choose_level(), rules="qtk", workers=2)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    given = [wrong, EARLY_EXIT[language], "  ) this is ( no program ]\n", f"```\n{whole_function(add)}```"]
    with scorer:
        scorer.check_references(tasks)
        answers = [Answer(SUITE.name, language, ADD, number, text) for number, text in enumerate(given)]
        verdicts = {scored.answer.sample: scored.verdict for scored in scorer.score([add], answers)}
    assert verdicts[0] == "failed"
    assert verdicts[1] in ("failed", "compile_error")
    assert verdicts[2] in ("failed", "compile_error")
    assert verdicts[3] == "passed"


def test_the_leaderboards_languages_come_first():
    assert tuple(SUITE.languages)[:11] == LEADERBOARD
    assert set(SUITE.languages) <= set(LANGUAGES)


def test_an_absent_toolchain_is_named_and_skipped(shared_data, tmp_path, run_qtk):
    """With a PATH that has Lua alone, Lua is scored and PHP is skipped; neither is scored 0."""
    lua = shutil.which("lua")
    if lua is None:
        pytest.skip("no lua")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lua").symlink_to(lua)
    name = data_file(SUITE, "lua", shared_data)
    ids = [row["name"] for row in read_rows(name)][:2]
    rows = [{"task_id": i, "language": language, "completion": "x"} for i in ids for language in ("lua", "php")]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("bench", "accuracy", "--suite", "multipl-e:lua,php", "--data", shared_data, "--limit", 2, "--json")
    done = run_qtk(
        *words, "--generations", file, "-o", tmp_path / "out", env={"PATH": str(tmp_path / "bin")}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [score["name"] for score in printed["scores"]] == ["lua"]
    assert "needs php (apt install php-cli)" in printed["skipped"]["multipl-e php"]
    file.write_text("".join(json.dumps({"task_id": i, "completion": "x"}) + "\n" for i in ids))
    unclear = run_qtk(*words, "--generations", file, "-o", tmp_path / "out2")
    assert unclear.returncode == 2
    assert "Give each row a language" in unclear.stderr
