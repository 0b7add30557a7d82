"""Answers to tasks, and those that were generated elsewhere, as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qtk.bench.accuracy.jsonl import read_rows
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.checkpoint.manifest import file_digest
from qtk.errors import InputError, listing

if TYPE_CHECKING:
    from qtk.bench.accuracy.answer_source import AskedModel

_TEXT_FIELDS = ("generation", "completion", "output", "response")
_NO_LOGITS = "A file of answers does not hold probabilities: give a MODEL or an engine."
Answers = dict[tuple[str | None, str | None, str], list[str]]


@dataclass(frozen=True)
class AnswerKey:
    """Which answer is meant: sample number `sample` for a task."""

    suite: str
    language: str
    task_id: str
    sample: int

    @property
    def name(self) -> str:
        """What the seed of its draws is made from."""
        return f"{self.suite} {self.task_id} {self.sample}"


@dataclass(frozen=True)
class Answer:
    """One sample for one task. generation: the model's raw text, before any extraction."""

    suite: str
    language: str
    task_id: str
    sample: int
    generation: str

    @property
    def key(self) -> AnswerKey:
        return AnswerKey(self.suite, self.language, self.task_id, self.sample)


class AnswerFile:
    """The answers in a file, as an `AnswerSource`."""

    role: Literal["answers"] = "answers"
    options = None
    without_logits = _NO_LOGITS

    def __init__(self, path: Path) -> None:
        """InputError when the file does not hold answers."""
        self.path, self._answers = path, read_answers(path)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def place(self) -> str:
        return str(self.path)

    def digest(self) -> str:
        return file_digest(self.path).sha256

    def ambiguous(self, parts: Sequence[tuple[SuitePart, Sequence[Task]]]) -> list[str]:
        """The tasks that several languages have, of which a row names no language."""
        languages: dict[tuple[str, str], str] = {}
        shared: dict[str, None] = {}
        for part, tasks in parts:
            suite = part.suite.name
            for task in tasks:
                other = languages.setdefault((suite, task.task_id), part.name)
                if other != part.name and any((name, None, task.task_id) in self._answers for name in (suite, None)):
                    shared[f"{suite} {task.task_id}: {other}, {part.name}"] = None
        return list(shared)

    def keys(self, part: SuitePart, tasks: Sequence[Task]) -> list[AnswerKey]:
        return [answer.key for answer in self._of(part, tasks)]

    def answers(self, part: SuitePart, tasks: Sequence[Task], directory: Path) -> Iterable[Answer]:
        return self._of(part, tasks)

    def asked_model(self) -> AskedModel:
        raise InputError(_NO_LOGITS)

    def close(self) -> None:
        """The file is read whole when the source is made, so there is nothing to close."""

    def _of(self, part: SuitePart, tasks: Sequence[Task]) -> list[Answer]:
        """InputError when tasks have no answer, naming them: a score over the others would mislead."""
        suite, language = part.suite.name, part.name
        answers, absent = [], []
        for task in tasks:
            keys = [(name, tongue, task.task_id) for name in (suite, None) for tongue in (language, None)]
            texts = next((self._answers[key] for key in keys if key in self._answers), None)
            if not texts:
                absent.append(task.task_id)
                continue
            answers += [Answer(suite, language, task.task_id, number, text) for number, text in enumerate(texts)]
        if absent:
            raise InputError(f"{self.path} has no answer for {len(absent)} tasks of {part.label}:\n{listing(absent)}")
        return answers


def read_answers(path: Path) -> Answers:
    """(suite or None, language or None, task_id) -> samples in the file's order.

    Each line has task_id, and generation or completion; and suite and language where task_id alone does not tell them. A
    list of strings in that field counts as several samples. InputError names every line that lacks something.
    """
    answers: Answers = {}
    complaints = []
    for number, row in enumerate(read_rows(path), 1):
        field = next((name for name in _TEXT_FIELDS if name in row), None)
        if "task_id" not in row or field is None:
            complaints.append(f"row {number}: needs task_id and one of {', '.join(_TEXT_FIELDS)}")
            continue
        texts = row[field] if isinstance(row[field], list) else [row[field]]
        if not all(isinstance(text, str) for text in texts):
            complaints.append(f"row {number}: {field} is not text")
            continue
        answers.setdefault((row.get("suite"), row.get("language"), str(row["task_id"])), []).extend(texts)
    if complaints:
        raise InputError(f"{path} does not hold answers:\n{listing(complaints)}")
    if not answers:
        raise InputError(f"{path} does not hold any answer.")
    return answers
