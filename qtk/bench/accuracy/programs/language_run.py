"""One language of one suite within a run: what is finished already, and what remains to be generated and run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.programs.answers import Answer, answers_for, read_answers, write_answer, write_line
from qtk.bench.accuracy.programs.generation import Key, ModelAnswers
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task, read_rows
from qtk.errors import InputError, listing
from qtk.sandbox.job import Level

TASKS_NAME, ANSWERS_NAME = "tasks.jsonl", "generations.jsonl"


class AnswerFile:
    """Answers that were generated elsewhere."""

    def __init__(self, path: Path) -> None:
        """InputError when the file does not hold answers."""
        self.path, self._answers = path, read_answers(path)

    def answers(self, suite: Suite, language: str, tasks: list[Task]) -> list[Answer]:
        """The answers of these tasks. InputError names those without one."""
        return answers_for(self._answers, suite.name, language, tasks, self.path)

    def require_told_apart(self, asked: list[tuple[Suite, str, list[Task]]]) -> None:
        """InputError when a row that names no language would be scored in several, as task names without one allow."""
        seen: dict[tuple[str, str], str] = {}
        shared: dict[str, None] = {}
        for suite, language, tasks in asked:
            for task in tasks:
                other = seen.setdefault((suite.name, task.task_id), language)
                if other != language and any(
                    (name, None, task.task_id) in self._answers for name in (suite.name, None)
                ):
                    shared[f"{suite.name} {task.task_id}: {other}, {language}"] = None
        if shared:
            raise InputError(
                f"{self.path} has rows without a language for tasks that several of the languages have:\n{listing(shared)}\n"
                "Give each row a language, or score one language at a time."
            )

    def require_samples(self, asked: list[tuple[Suite, str, list[Task]]], k: int) -> None:
        """InputError when a task has fewer than k answers: pass@k cannot be told from them."""
        few = []
        for suite, language, tasks in asked:
            counts = Counter(answer.task_id for answer in self.answers(suite, language, tasks))
            few += [f"{suite.name} {name}: {count}" for name, count in counts.items() if count < k]
        if few:
            raise InputError(f"pass@{k} needs {k} samples of every task; {self.path} has fewer of:\n{listing(few)}")


class LanguageRun:
    """Generates and runs what an earlier, stopped run has not finished; every verdict is written at once."""

    def __init__(
        self, suite: Suite, language: str, tasks: list[Task], references: list[Task], directory: Path, *, rules: Rules,
        level: Level, workers: int | None,
    ) -> None:  # fmt: skip
        """`references`: the tasks whose known solutions must pass first."""
        self.references = references
        self.suite, self.language, self.tasks = suite, language, tasks
        self.rules, self.level, self.workers = rules, level, workers
        self.limits = ""  # in words, known once the toolchain is there
        self.tasks_file, self.answers_file = directory / TASKS_NAME, directory / ANSWERS_NAME

    def verdicts(self, source: AnswerFile | ModelAnswers) -> dict[str, list[str]]:
        """task_id -> verdicts of its samples. LanguageUnavailable when the language cannot be scored here."""
        finished: dict[Key, str] = {
            (row["suite"], row["language"], row["task_id"], row["sample"]): row["verdict"]
            for row in complete_rows(self.tasks_file)
        }
        given = source.answers(self.suite, self.language, self.tasks) if isinstance(source, AnswerFile) else None
        with Scorer(self.suite, self.language, level=self.level, rules=self.rules, workers=self.workers) as scorer:
            self.limits = scorer.limits_note(self.tasks[0])
            # Before any answer is generated: that costs far more than to find that the language cannot be scored.
            if given is None or any(answer.key not in finished for answer in given):
                scorer.check_references(self.references)
            answers = given if given is not None else self._generated(source)
            remaining = [answer for answer in answers if answer.key not in finished]
            with open(self.tasks_file, "a", encoding="utf-8") as stream:
                for scored in scorer.score(self.tasks, remaining):
                    write_line(stream, scored.record())
                    finished[scored.answer.key] = scored.verdict
        verdicts: dict[str, list[str]] = {task.task_id: [] for task in self.tasks}
        for answer in answers:
            verdicts[answer.task_id].append(finished[answer.key])
        return verdicts

    def _generated(self, source: Any) -> list[Answer]:
        mine = [
            Answer(**row)
            for row in complete_rows(self.answers_file)
            if (row["suite"], row["language"]) == (self.suite.name, self.language)
        ]
        with open(self.answers_file, "a", encoding="utf-8") as stream:

            def take(answer: Answer) -> None:
                write_answer(stream, answer)
                mine.append(answer)

            source(self.suite, self.language, self.tasks, take, {answer.key for answer in mine})
        order = {task.task_id: number for number, task in enumerate(self.tasks)}
        return sorted(mine, key=lambda answer: (order[answer.task_id], answer.sample))


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a killed run may have left with half a line at its end, which is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return read_rows(path)
