"""The score of programs that were run: pass@k, the verdicts, and two such scores compared task by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.bench.accuracy.results.baseline import load_baseline
from qtk.bench.accuracy.results.pooled import problem_means
from qtk.bench.accuracy.results.score import (
    Cell,
    ComparedRate,
    ComparedRow,
    CompareOptions,
    Score,
    TaskSource,
    conclusion,
    percent,
    rate_interval,
    rounded,
)
from qtk.bench.accuracy.results.statistics import (
    mcnemar_exact,
    mean_and_error,
    paired_difference,
    paired_rate_limits,
    pass_at_k,
)
from qtk.errors import InputError

ALL_LANGUAGES = "all languages"


class PassRate(BaseModel):
    """pass@k over the tasks, between 0 and 1, and its standard error (None with fewer than two tasks)."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    k: int
    value: float
    standard_error: float | None


class Canaries(BaseModel):
    """What became of tasks that no answer can solve. tasks: how many. programs: how many answers to them were run. passed: the
    tasks of those that passed, each a forgery or a fault of the scorer."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    tasks: int
    programs: int
    passed: list[str]


class ProgramsScore(Score):
    """One language of one suite. tasks: task_id -> a verdict a sample; verdicts: how often each was given. suspicious: of tasks
    that passed, what in the answer deserves a look. canaries: None where there were none."""

    title: ClassVar[str] = "Programs that passed their tests"
    columns: ClassVar[tuple[str, ...]] = ("suite", "language", "tasks", "rate", "%", "95 % interval", "verdicts")
    kind: Literal["programs"] = "programs"
    pass_at: list[PassRate]
    verdicts: dict[str, int]
    tasks: dict[str, list[str]]
    suspicious: dict[str, list[str]] = Field(default_factory=dict)
    canaries: Canaries | None = None

    @field_validator("tasks")
    @classmethod
    def _judged(cls, tasks: dict[str, list[str]]) -> dict[str, list[str]]:
        if empty := [name for name, verdicts in tasks.items() if not verdicts]:
            raise ValueError(f"tasks without a verdict: {', '.join(empty)}")
        return tasks

    @property
    def forged(self) -> bool:
        """Whether answers passed tests that contradict themselves."""
        return self.canaries is not None and bool(self.canaries.passed)

    def rates(self) -> dict[str, float]:
        """task_id -> share of its samples that passed."""
        return {key: _passed(verdicts) / len(verdicts) for key, verdicts in self.tasks.items()}

    def rows(self) -> list[tuple[Cell, ...]]:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items())
        if self.suspicious:
            verdicts += f"; {len(self.suspicious)} suspicious"
        if self.canaries is not None:
            verdicts += f"; canaries: {len(self.canaries.passed)} of {self.canaries.programs} passed"
        return [
            (
                *(self.suite, self.name, self.counted, f"pass@{rate.k}", rounded(percent(rate.value))),
                *(rate_interval(rate.value, rate.standard_error, len(self.tasks)), verdicts),
            )
            for rate in self.pass_at
        ]

    def compare(self, after: ProgramsScore, options: CompareOptions) -> list[ComparedRow]:
        single = all(len(verdicts) == 1 for score in (self, after) for verdicts in score.tasks.values())
        baseline = load_baseline(options.baseline)
        row = _compared(self.rates(), after.rates(), options.tolerance)
        return [
            ComparedPrograms(
                suite=self.suite,
                name=self.name,
                whole=self.whole,
                p_value=mcnemar_exact(len(row["lost"]), len(row["gained"])) if single else None,
                published=baseline.scores.get(self.name) if baseline and baseline.suite == self.suite else None,
                **row,
            )
        ]

    @classmethod
    def compare_pooled(
        cls, pairs: Sequence[tuple[ProgramsScore, ProgramsScore]], options: CompareOptions
    ) -> list[ComparedRow]:
        """All languages in one row, in which a problem counts once."""
        old, new = (problem_means([pair[side].rates() for pair in pairs]) for side in (0, 1))
        row = _compared(old, new, options.tolerance)
        suite = pairs[0][0].suite
        return [ComparedPrograms(suite=suite, name=ALL_LANGUAGES, languages=len(pairs), p_value=None, **row)]


def _compared(old: Mapping[str, float], new: Mapping[str, float], tolerance: float) -> dict[str, Any]:
    """The fields of a row that follow from shares between 0 and 1, by task or problem; those of `new` may be in another order."""
    names = list(old)
    before, after = [old[name] for name in names], [new[name] for name in names]
    old_mean, old_error = mean_and_error(before)
    new_mean, new_error = mean_and_error(after)
    difference, error = paired_difference(before, after)
    limits = paired_rate_limits([b - a for a, b in zip(before, after, strict=True)]).times(100)
    return {
        "tasks": len(names),
        "before": 100 * old_mean,
        "before_error": percent(old_error),
        "after": 100 * new_mean,
        "after_error": percent(new_error),
        "difference": 100 * difference,
        "difference_error": percent(error),
        "low": limits.low,
        "high": limits.high,
        "lost": [name for name in names if new[name] < old[name]],
        "gained": [name for name in names if new[name] > old[name]],
        "tolerance": tolerance,
        "verdict": conclusion(limits, tolerance),
    }


class ComparedPrograms(ComparedRate):
    """One language of one suite, or all of them: pass@1 before and after. published: the published figures of that language.

    languages: how many the row pools; `tasks` then counts problems, and lost and gained hold those whose mean fell or rose.
    """

    title: ClassVar[str] = "pass@1 before and after"
    columns: ClassVar[tuple[str, ...]] = (*ComparedRate.columns, "published")
    rate_axis: ClassVar[str] = "pass@1 (%)"
    kind: Literal["programs"] = "programs"
    languages: int = 1

    @property
    def pooled(self) -> bool:
        return self.languages > 1

    @property
    def counted(self) -> Cell:
        return f"{self.tasks} problems" if self.pooled else super().counted

    @property
    def evidence(self) -> str:
        return f"{self.tasks} problems" if self.pooled else super().evidence

    def flips(self) -> dict[str, list[str]]:
        """None of all languages together: each language's row names its own."""
        return {} if self.pooled else super().flips()

    def cells(self) -> tuple[Cell, ...]:
        pair = self.published
        return (*super().cells(), f"{pair.before:.2f} -> {pair.after:.2f}" if pair else None)


def score_programs(
    source: TaskSource, tasks: Mapping[str, Sequence[str]], ks: Sequence[int], limits: str = ""
) -> ProgramsScore:
    """pass@k and the counts. tasks: task_id -> the verdicts of its samples. limits: those that the programs ran under.

    InputError for a k beyond the samples.
    """
    fewest = min(len(verdicts) for verdicts in tasks.values())
    if too_large := [k for k in ks if k > fewest]:
        raise InputError(f"pass@{too_large[0]} needs {too_large[0]} samples of every task; there are {fewest}.")
    rates = []
    for k in ks:
        mean, error = mean_and_error([pass_at_k(len(v), _passed(v), k) for v in tasks.values()])
        rates.append(PassRate(k=k, value=mean, standard_error=error if error == error else None))
    counts = Counter(verdict for verdicts in tasks.values() for verdict in verdicts)
    return ProgramsScore(
        suite=source.suite,
        name=source.name,
        file=source.file,
        file_sha256=source.sha256,
        whole=source.whole,
        limits=limits,
        pass_at=rates,
        verdicts=dict(counts.most_common()),
        tasks={key: list(verdicts) for key, verdicts in tasks.items()},
    )


def _passed(verdicts: Sequence[str]) -> int:
    return sum(verdict == "passed" for verdict in verdicts)
