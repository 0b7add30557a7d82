"""Questions with options: a model is asked each of them in both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.choices.asking import Asking
from qtk.bench.accuracy.choices.loading import load_set
from qtk.bench.accuracy.choices.rows import QuestionRow
from qtk.bench.accuracy.measures.measure import Loaded, Need, Workplace
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.choices import ChoicesScore, score_choices
from qtk.bench.accuracy.suites.suites import SuitePart


@dataclass(frozen=True)
class LoadedQuestions(Loaded):
    """rows: the questions to ask."""

    rows: list[QuestionRow]

    @property
    def task_ids(self) -> list[str]:
        return [row.id for row in self.rows]

    def share(self, number: int, count: int) -> Self | None:
        """Every count-th question, with its examples."""
        rows = self.rows[number::count]
        return replace(self, rows=rows) if rows else None


class ChoicesMeasure:
    """The rates of one set, by generation and by perplexity."""

    needs: ClassVar[frozenset[Need]] = frozenset({"text", "logits"})

    def __init__(self, options: AccuracyOptions) -> None:
        self.options = options

    def load(self, part: SuitePart) -> LoadedQuestions:
        options = self.options
        loaded = load_set(part.suite, part.name, options.data, options.limit, hub=options.hub)
        return LoadedQuestions(part, loaded.files, loaded.name, loaded.sha256, loaded.rows, whole=loaded.whole)

    def refusals(self, loaded: Sequence[LoadedQuestions], source: AnswerSource) -> list[str]:
        return []

    def score(self, loaded: LoadedQuestions, source: AnswerSource, workplace: Workplace) -> Sequence[ChoicesScore]:
        choice_set = loaded.part.suite.sets[loaded.part.name]
        asking = Asking(source.asked_model(), loaded.part, workplace.directory)
        answers, fewer_examples = asking.answers(loaded.rows)
        return [score_choices(loaded.source, choice_set.title, choice_set.mean, answers, fewer_examples)]
