"""A fifth kind of score in one file, as docs and `qtk.bench.accuracy.kinds` promise: how long the answers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.kinds import Kind
from qtk.bench.accuracy.measures.measure import Need, Workplace
from qtk.bench.accuracy.measures.tasks import LoadedTasks, load_tasks
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.score import Cell, ComparedRow, CompareOptions, Score, conclusion
from qtk.bench.accuracy.results.statistics import Limits
from qtk.bench.accuracy.suites.suites import SuitePart


class LengthScore(Score):
    title: ClassVar[str] = "Length of the answers"
    columns: ClassVar[tuple[str, ...]] = ("suite", "language", "longest", "mean")
    kind: Literal["lengths"] = "lengths"
    tasks: dict[str, int]

    @property
    def mean(self) -> float:
        return sum(self.tasks.values()) / len(self.tasks)

    def rows(self) -> list[tuple[Cell, ...]]:
        return [(self.suite, self.name, max(self.tasks.values()), self.mean)]

    def compare(self, after: LengthScore, options: CompareOptions) -> list[ComparedRow]:
        difference = after.mean - self.mean
        row = ComparedLength(
            suite=self.suite,
            name=self.name,
            tasks=len(self.tasks),
            before=self.mean,
            after=after.mean,
            difference=difference,
            difference_error=None,
            p_value=None,
            tolerance=options.tolerance,
            verdict=conclusion(Limits(difference, difference), options.tolerance),
        )
        return [row]


class ComparedLength(ComparedRow):
    title: ClassVar[str] = "Length of the answers before and after"
    columns: ClassVar[tuple[str, ...]] = ("language", "before", "after", "verdict")
    unit: ClassVar[str] = "characters"
    kind: Literal["lengths"] = "lengths"

    def cells(self) -> tuple[Cell, ...]:
        return (self.name, self.before, self.after, self.verdict)


class LengthMeasure:
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})

    def __init__(self, options: AccuracyOptions) -> None:
        self.options = options

    def load(self, part: SuitePart) -> LoadedTasks:
        return load_tasks(part, self.options)

    def refusals(self, loaded: Sequence[LoadedTasks], source: AnswerSource) -> list[str]:
        return ["lengths are measured of one sample"] if max(self.options.k) > 1 else []

    def score(self, loaded: LoadedTasks, source: AnswerSource, workplace: Workplace) -> Sequence[LengthScore]:
        answers = source.answers(loaded.part, loaded.tasks, workplace.directory)
        lengths = {answer.task_id: len(answer.generation) for answer in answers}
        name = loaded.source
        return [LengthScore(suite=name.suite, name=name.name, file=name.file, file_sha256=name.sha256, tasks=lengths)]


LENGTHS = Kind(LengthScore, ComparedLength, "support.answer_lengths:LengthMeasure")
