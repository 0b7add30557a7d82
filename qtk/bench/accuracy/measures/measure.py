"""What the run asks of a kind of score: which data it needs, what it refuses, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, TypeVar

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.results.score import Score, TaskSource
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.sandbox.job import Level

Need = Literal["text", "logits", "sandbox"]


@dataclass(frozen=True)
class Loaded:
    """A part whose data was read. files: of the data. file: what a result calls them. sha256: of their content. whole: how many
    tasks the data holds, more than are scored with --limit; None where that is not known yet."""

    part: SuitePart
    files: list[Path]
    file: str
    sha256: str
    whole: int | None = field(default=None, kw_only=True)

    @property
    def source(self) -> TaskSource:
        return TaskSource(self.part.suite.name, self.part.name, self.file, self.sha256, self.whole)

    @property
    def task_ids(self) -> list[str]:
        """The tasks, in their order; empty for a part that is one piece of work."""
        return []

    def share(self, number: int, count: int) -> Self | None:
        """One of `count` shares of the work, None where it is empty. What is one piece of work is whole in the first."""
        return self if number == 0 else None


@dataclass(frozen=True)
class Workplace:
    """The directory in which a run keeps what is finished, and the sandbox level if one of its measures needs a sandbox."""

    directory: Path
    level: Level | None

    @property
    def sandbox(self) -> Level:
        """The sandbox level. ValueError in a run in which no measure said that it needs a sandbox."""
        if self.level is None:
            raise ValueError("no measure of this run needs a sandbox, so no level was chosen")
        return self.level


L = TypeVar("L", bound=Loaded)


class Measure(Protocol[L]):
    """How one kind of score is measured. It is made from the `AccuracyOptions` of the run.

    needs: "text", answers; "logits", a model that shows its probabilities; "sandbox", a place to run programs in.
    """

    needs: ClassVar[frozenset[Need]]

    def load(self, part: SuitePart) -> L:
        """The part's data. MissingData where it is absent; InputError for data or options that do not fit the suite."""
        ...

    def refusals(self, loaded: Sequence[L], source: AnswerSource) -> list[str]:
        """Why the parts of this kind cannot be scored with these answers; empty if they can. Nothing is generated yet."""
        ...

    def score(self, loaded: L, source: AnswerSource, workplace: Workplace) -> Sequence[Score]:
        """The scores of one part; what a stopped run has finished in the directory is not done again.

        LanguageUnavailable when this machine cannot score the part, though it may score others.
        """
        ...
