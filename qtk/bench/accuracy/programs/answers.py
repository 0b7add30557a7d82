"""Answers of a model as JSON lines: read from elsewhere, or written while they are generated."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from qtk.bench.accuracy.suites.tasks import Task, read_rows
from qtk.errors import InputError, listing

_TEXT_FIELDS = ("generation", "completion", "output", "response")


@dataclass(frozen=True)
class Answer:
    """One sample for one task. `generation` is the model's raw text, before any extraction."""

    suite: str
    language: str
    task_id: str
    sample: int
    generation: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.suite, self.language, self.task_id, self.sample)


def write_line(stream: IO[str], data: dict[str, object]) -> None:
    """One JSON line, out of our hands at once, so that a killed run keeps it."""
    stream.write(json.dumps(data, ensure_ascii=False) + "\n")
    stream.flush()


def write_answer(stream: IO[str], answer: Answer) -> None:
    write_line(stream, dict(asdict(answer)))


Answers = dict[tuple[str | None, str | None, str], list[str]]


def read_answers(path: Path) -> Answers:
    """(suite or None, language or None, task_id) -> samples in the file's order.

    Each line: task_id, and generation or completion; suite and language where task_id alone does not tell them.

    A list of strings in that field counts as several samples. InputError names every line that lacks something.
    """
    answers: Answers = {}
    wrong = []
    for number, row in enumerate(read_rows(path), 1):
        field = next((name for name in _TEXT_FIELDS if name in row), None)
        if "task_id" not in row or field is None:
            wrong.append(f"row {number}: needs task_id and one of {', '.join(_TEXT_FIELDS)}")
            continue
        texts = row[field] if isinstance(row[field], list) else [row[field]]
        if not all(isinstance(text, str) for text in texts):
            wrong.append(f"row {number}: {field} is no text")
            continue
        answers.setdefault((row.get("suite"), row.get("language"), str(row["task_id"])), []).extend(texts)
    if wrong:
        raise InputError(f"{path} does not hold answers:\n{listing(wrong)}")
    if not answers:
        raise InputError(f"{path} holds no answer.")
    return answers


def answers_for(answers: Answers, suite: str, language: str, tasks: Iterable[Task], path: Path) -> list[Answer]:
    """The answers of a suite's tasks. InputError when tasks have none, naming them: a score over the rest would lie."""
    found, absent = [], []
    for task in tasks:
        keys = [(name, tongue, task.task_id) for name in (suite, None) for tongue in (language, None)]
        texts = next((answers[key] for key in keys if key in answers), None)
        if not texts:
            absent.append(task.task_id)
            continue
        found += [Answer(suite, language, task.task_id, number, text) for number, text in enumerate(texts)]
    if absent:
        raise InputError(f"{path} has no answer for {len(absent)} tasks of {suite} {language}:\n{listing(absent)}")
    return found
