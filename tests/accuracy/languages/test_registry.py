"""A language is one record: one that the tests make up is read, asked for, run and scored like any other."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from qtk.bench.accuracy import kinds
from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.languages.registry import LANGUAGES, language_named
from qtk.bench.accuracy.programs.prompts import prompt_text
from qtk.bench.accuracy.suites.suites import load_suite, suite_tasks
from qtk.errors import InputError

# Really the shell, under another name.
TOY = Language(
    name="seashell",
    title="SeaShell",
    short=("sea",),
    tags=("shellfish",),
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^\}[^\n]*", re.MULTILINE)),
            definition=r"^NAME\s*\(\)",
            next_definition=re.compile(r"(\w+)\s*\(\)"),
        )
    ),
    toolchain=Interpreted(commands=("sh",), install="it is there", file="main.sh", end="printf %s '{0}'"),
)
PROMPT = "# Adds two numbers.\nadd() {\n"
BODY = "    echo $(($1 + $2))\n}\n"


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of one task in the toy language, which is registered."""
    monkeypatch.setitem(LANGUAGES, TOY.name, TOY)
    task = {
        "task_id": "Sea/0", "prompt": PROMPT, "canonical_solution": BODY,
        "test": "set -e\n[ $(add 1 2) = 3 ]\n[ $(add 4 5) = 9 ]\n",
    }  # fmt: skip
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    file = tmp_path / "beach.yaml"
    file.write_text(
        "name: beach\nsummary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval-x\n"
        "languages:\n  seashell: {file: tasks.jsonl, tasks: 1}\nseconds: 5\n"
    )
    return file


def test_a_new_language_is_asked_for_and_scored(suite, tmp_path, run_qtk):
    answers = {
        BODY + "\n# And so on.\nexit 1\n": "passed",
        f"add() {{\n{BODY}": "passed",
        "Like this:\n```shellfish\nplus() {\n  echo $(($1 + $2))\n}\nadd() {\n  plus $1 $2\n}\n```": "passed",
        f"```python\nprint(1)\n```\n```sea\nno\n```\n```seashell\nadd() {{\n{BODY}```": "passed",
        "    echo $(($1 - $2))\n}\n": "failed",
        "    exit 0\n}\n": "failed",
        "    sleep 60\n}\n": "timeout",
    }
    lines = [json.dumps({"task_id": "Sea/0", "generation": text}) for text in answers]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n")
    words = ("--suite", f"{suite}:sea", "--data", tmp_path, "--generations", tmp_path / "answers.jsonl")
    done = run_qtk("bench", "accuracy", *words, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    [score] = json.loads(done.stdout)["scores"]
    assert score["name"] == "seashell"
    assert score["tasks"] == {"Sea/0": list(answers.values())}


def test_a_new_language_has_its_prompts(suite, tmp_path):
    loaded = load_suite(str(suite))
    [task] = suite_tasks(loaded, "seashell", tmp_path)[0]
    assert task.entry == "add"
    assert prompt_text(loaded, task, "codefuse") == f"# language: SeaShell\n{PROMPT}"
    assert "Complete this SeaShell code." in prompt_text(loaded, task, "model")


def test_what_a_language_does_not_have_is_said():
    with pytest.raises(LanguageUnavailable, match="cobol"):
        language_named("cobol")
    with pytest.raises(InputError, match="python has no setting standard"):
        LANGUAGES["python"].ready_toolchain(1, {"standard": "c++17"})


def test_every_language_is_registered_under_its_name():
    assert all(name == language.name for name, language in LANGUAGES.items())
    words = [word for language in LANGUAGES.values() for word in (language.name, *language.short)]
    assert len(words) == len(set(words))


def test_no_language_is_named_outside_its_file():
    """In the code that reads answers, programs and suites: a name there would be a file more that a new language touches."""
    names = {word for language in LANGUAGES.values() for word in (language.name, *language.short) if len(word) > 1}
    folder = Path(kinds.__file__).parent
    named = [
        f"{path.relative_to(folder)}:{node.lineno}: {node.value}"
        for path in folder.rglob("*.py")
        if path.parent.name not in ("languages", "results")  # results: published tables
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert named == []
