"""What once gave way in suites, answers and files of YAML: each is refused with a sentence, in bounded time and memory."""

from __future__ import annotations

import gzip
import json

import pytest
from faults.conftest import Workshop
from support.confined import refused


def score(w: Workshop, *more: object) -> tuple[object, ...]:
    words = ("bench", "accuracy", "--suite", w.root / "suite.yaml", "--data", w.root)
    return *words, "--generations", w.root / "answers.jsonl", "-o", w.out, "--allow-unsandboxed", *more


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(97 + n)}: &{chr(97 + n)} [{','.join([f'*{chr(96 + n)}'] * 9)}]\n" for n in range(1, 9)
)
YAML = {
    "bomb": _BOMB, "itself": "name: &a [*a]", "deep": "name: " + "[" * 3000, "twice": "name: a\nname: b", "number": "name: " + "1" * 5000,
    "date": "name: 2001-99-99", "infinite": "name: own\nmodel: ./m\nquantize: {memory: .inf}", "nan": "seconds: .nan", "list": "[1]",
    "tag": "name: !!python/object/apply:os.system [ls]", "binary": "\x00\x01", "empty": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *(("recipe", case) for case in YAML),
        ("suite", "bomb"),
        ("suite", "nan"),
        ("profile", "bomb"),
        ("profile", "twice"),
    ],
)
def test_yaml_that_nobody_should_write(broken, confined, kind: str, case: str) -> None:
    path = broken.root / f"{kind}.yaml"
    path.write_text(YAML[case])
    words = {
        "recipe": ("run", path, "-o", broken.out),
        "suite": score(broken),
        "profile": ("plan", broken.m, "--gpu", path),
    }[kind]
    outcome = confined.run(*words)
    refused(outcome, broken.out)
    assert outcome.seconds < 10


def test_a_gzip_bomb_of_tasks(broken, confined) -> None:
    with gzip.open(broken.root / "own.jsonl.gz", "wb", compresslevel=1) as stream:
        for _ in range(600):
            stream.write(b"\0" * (1 << 20))
    (broken.root / "suite.yaml").write_text(
        (broken.root / "suite.yaml").read_text().replace("own.jsonl", "own.jsonl.gz")
    )
    refused(confined.run(*score(broken)), broken.out, "unpacks to more than")


def test_a_suite_names_files_below_its_folder_only(broken, confined) -> None:
    text = (broken.root / "suite.yaml").read_text()
    for name in ("../w/own.jsonl", str(broken.root / "own.jsonl")):
        (broken.root / "suite.yaml").write_text(text.replace("own.jsonl", name))
        refused(confined.run(*score(broken)), broken.out, "does not lie inside")
    (broken.root / "suite.yaml").write_text(text + "solutions: ../../../etc/passwd\n")
    refused(confined.run(*score(broken)), broken.out, "does not lie inside")


def test_a_suite_that_contains_itself(broken, confined) -> None:
    path = broken.root / "suite.yaml"
    path.write_text(f"name: own\nkind: group\nsummary: s\nsource: s\nlicence: MIT\nmembers: ['{path}']\n")
    refused(confined.run(*score(broken)), broken.out, "itself")


def test_answers_of_other_types(broken, confined) -> None:
    for row in (
        {"task_id": [], "generation": "x"},
        {"task_id": "T/0", "generation": 5},
        {"task_id": "T/0", "suite": []},
        [],
    ):
        (broken.root / "answers.jsonl").write_text(json.dumps(row) + "\n")
        outcome = confined.run(*score(broken))
        assert outcome.clean, outcome.said


@pytest.mark.parametrize("field", ["prompt", "test", "entry_point", "task_id", "canonical_solution"])
def test_a_task_with_a_field_of_another_type_is_wrong_input(broken, confined, field: str) -> None:
    rows = [json.loads(line) for line in (broken.root / "own.jsonl").read_text().splitlines()]
    (broken.root / "own.jsonl").write_text("".join(json.dumps({**row, field: 5}) + "\n" for row in rows))
    refused(confined.run(*score(broken)), broken.out, field)
