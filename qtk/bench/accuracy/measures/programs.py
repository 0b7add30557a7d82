"""Programs: answers become programs, which are run in the sandbox against the tests; every verdict is written at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.jsonl import complete_rows, write_row
from qtk.bench.accuracy.measures.measure import Need, Workplace
from qtk.bench.accuracy.measures.tasks import LoadedTasks, load_tasks
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.programs.canaries import canaries
from qtk.bench.accuracy.programs.compatibility import as_the_harness, processor_refusals
from qtk.bench.accuracy.programs.scoring import Scored, Scorer
from qtk.bench.accuracy.results.programs import Canaries, ProgramsScore, score_programs
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.errors import listing
from qtk.progress import warn

TASKS_NAME, CANARIES_NAME = "tasks.jsonl", "canaries.jsonl"


@dataclass(frozen=True)
class LoadedPrograms(LoadedTasks):
    """impossible: the tasks that are scored once more with tests that contradict themselves."""

    impossible: list[Task]

    def share(self, number: int, count: int) -> Self | None:
        share = super().share(number, count)
        if share is None:
            return None
        own = set(share.task_ids)
        return replace(share, impossible=[task for task in self.impossible if task.task_id in own])


class ProgramsMeasure:
    """pass@k of one language: the references first, then all answers, then their programs."""

    needs: ClassVar[frozenset[Need]] = frozenset({"text", "sandbox"})

    def __init__(self, options: AccuracyOptions) -> None:
        self.options = options

    def load(self, part: SuitePart) -> LoadedPrograms:
        # The rules of another harness include its clocks and its choice of tests.
        loaded = load_tasks(replace(part, suite=as_the_harness(part.suite, self.options.rules)), self.options)
        count = self.options.canaries
        impossible = canaries(loaded.tasks, count, self.options.canary_seed) if count else []
        return LoadedPrograms(**vars(loaded), impossible=impossible)

    def refusals(self, loaded: Sequence[LoadedPrograms], source: AnswerSource) -> list[str]:
        reasons = processor_refusals(self.options.rules) if source.role == "model" else []
        if ambiguous := source.ambiguous([(data.part, data.tasks) for data in loaded]):
            reasons.append(
                f"{source.place} has rows without a language for tasks that several of the languages have:\n"
                f"{listing(ambiguous)}\nGive each row a language, or score one language at a time."
            )
        k = max(self.options.k)
        short = []
        for data in loaded:
            counts = Counter(key.task_id for key in source.keys(data.part, data.tasks))
            short += [f"{data.part.suite.name} {task}: {count}" for task, count in counts.items() if count < k]
        if short:
            reasons.append(
                f"pass@{k} needs {k} samples of every task. With {source.label} there are fewer of:\n{listing(short)}"
            )
        return reasons

    def score(self, loaded: LoadedPrograms, source: AnswerSource, workplace: Workplace) -> Sequence[ProgramsScore]:
        part, tasks, impossible = loaded.part, loaded.tasks, loaded.impossible
        file, other = workplace.directory / TASKS_NAME, workplace.directory / CANARIES_NAME
        finished, suspicious = _finished(file), _suspicious(file)
        keys = source.keys(part, tasks)
        chosen = {task.task_id for task in impossible}
        canary_keys = [key for key in keys if key.task_id in chosen]
        ended = _finished(other)
        with Scorer(
            part.suite,
            part.name,
            level=workplace.sandbox,
            rules=self.options.rules,
            workers=self.options.workers,
            data=loaded.files,
        ) as scorer:
            limits = scorer.limits_note(tasks[0])
            if any(key not in finished for key in keys) or any(key not in ended for key in canary_keys):
                # Before any answer is generated: that takes far longer than to find that the language cannot be scored.
                scorer.check_references(loaded.references)
                place = {key: number for number, key in enumerate(keys)}
                answers = sorted(source.answers(part, tasks, workplace.directory), key=lambda answer: place[answer.key])
                for scored in _written(file, scorer, tasks, [it for it in answers if it.key not in finished]):
                    finished[scored.answer.key] = scored.verdict
                    if scored.suspicions:
                        suspicious[scored.answer.task_id] = scored.suspicions
                again = [it for it in answers if it.task_id in chosen and it.key not in ended]
                for scored in _written(other, scorer, impossible, again):
                    ended[scored.answer.key] = scored.verdict
        verdicts: dict[str, list[str]] = {task.task_id: [] for task in tasks}
        for key in keys:
            verdicts[key.task_id].append(finished[key])
        score = score_programs(loaded.source, verdicts, sorted(set(self.options.k)), limits)
        passed = sorted({key.task_id for key in canary_keys if ended[key] == "passed"})
        found = Canaries(tasks=len(impossible), programs=len(canary_keys), passed=passed) if impossible else None
        own = {name: reasons for name, reasons in suspicious.items() if name in verdicts}
        _warn(part, own, found)
        return [score.model_copy(update={"suspicious": own, "canaries": found})]


def _written(file: Path, scorer: Scorer, tasks: Sequence[Task], answers: Sequence[Answer]) -> Iterator[Scored]:
    """Scores answers; each line is written at once."""
    if not answers:
        return
    with open(file, "a", encoding="utf-8") as stream:
        for scored in scorer.score(tasks, answers):
            write_row(stream, scored.record())
            yield scored


def _warn(part: SuitePart, suspicious: Mapping[str, Sequence[str]], found: Canaries | None) -> None:
    if found is not None and found.passed:
        warn(
            f"{part.label}: answers passed tests that contradict themselves, so they forged their pass, or the scorer is at "
            f"fault; do not trust this score:\n{listing(found.passed)}"
        )
    if suspicious:
        lines = [f"{name}: {', '.join(reasons)}" for name, reasons in suspicious.items()]
        warn(f"{part.label}: these passed and deserve a look:\n{listing(lines)}")


def _suspicious(file: Path) -> dict[str, list[str]]:
    return {row["task_id"]: row["suspicious"] for row in complete_rows(file) if row.get("suspicious")}


def _finished(file: Path) -> dict[AnswerKey, str]:
    return {
        AnswerKey(row["suite"], row["language"], row["task_id"], row["sample"]): row["verdict"]
        for row in complete_rows(file)
    }
