"""Names in the package: a class name means one thing, a file name says what the file does, and no file grows too long."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qtk"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500


def test_no_class_name_occurs_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_only_the_command_is_called_run() -> None:
    assert [path.relative_to(PACKAGE).as_posix() for path in FILES if path.name == "run.py"] == ["cli/run.py"]


@pytest.mark.parametrize("word", ["utils", "helpers", "manager", "common", "misc"])
def test_no_file_is_named_after_nothing(word: str) -> None:
    assert [path.name for path in FILES if word in path.stem.split("_")] == []


def test_no_file_is_longer_than_the_rule_allows() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_file_says_what_it_is_for() -> None:
    silent = [
        path for path in FILES if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
