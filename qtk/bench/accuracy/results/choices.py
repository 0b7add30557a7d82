"""The score of a set of questions, by generation and by perplexity, and two such scores compared question by question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

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
from qtk.bench.accuracy.results.statistics import mcnemar_exact, mean_and_error, paired_rate_limits
from qtk.errors import InputError

Mode = Literal["generation", "perplexity"]
Mean = Literal["questions", "subjects"]
MODES: tuple[Mode, Mode] = ("generation", "perplexity")


class ChoiceAnswer(BaseModel):
    """One question: the right option, the one that was generated (None: no letter was found), the likeliest one."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    subject: str = ""
    gold: int
    generation: int | None
    perplexity: int

    def right(self, mode: Mode) -> bool:
        return getattr(self, mode) == self.gold


class ChoiceRate(BaseModel):
    """Share of right answers, between 0 and 1, and its standard error (None for a single question)."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    value: float
    standard_error: float | None


class ChoicesScore(Score):
    """One set. kept: the mode with the higher rate. majority: what always answering the commonest option would score.

    set_title: what the set is called. mean: "questions", or "subjects": the plain mean of the subjects' rates.
    fewer_examples: how many questions were asked with fewer examples than the set wants, because the engine could not
    hold more.
    """

    title: ClassVar[str] = "Questions, by generation and by perplexity; the higher of the two is kept"
    columns: ClassVar[tuple[str, ...]] = (
        *("set", "questions", "generation %", "perplexity %", "kept", "%", "95 % interval", "commonest %", "note"),
    )
    kind: Literal["choices"] = "choices"
    set_title: str
    mean: Mean
    generation: ChoiceRate
    perplexity: ChoiceRate
    kept: Mode
    majority: float
    fewer_examples: int
    no_letter: int
    tasks: dict[str, ChoiceAnswer]

    def rate(self, mode: Mode) -> ChoiceRate:
        return self.generation if mode == "generation" else self.perplexity

    def rows(self) -> list[tuple[Cell, ...]]:
        kept = self.rate(self.kept)
        row = (
            *(self.set_title, self.counted),
            *(rounded(percent(self.generation.value)), rounded(percent(self.perplexity.value))),
            *(self.kept, rounded(percent(kept.value))),
            rate_interval(kept.value, kept.standard_error, len(self.tasks)),
            rounded(percent(self.majority)),
            f"{self.no_letter} without a letter" if self.no_letter else None,
        )
        return [row]

    def compare(self, after: ChoicesScore, options: CompareOptions) -> list[ComparedRow]:
        if self.mean != after.mean:
            raise InputError(f"{self.name}: the mean is over {self.mean} before and over {after.mean} after.")
        mode: Mode = self.kept
        other: Mode = "perplexity" if mode == "generation" else "generation"
        old, new = ({name: task.right(mode) for name, task in score.tasks.items()} for score in (self, after))
        changes = {name: float(new[name]) - float(old[name]) for name in old}
        change = rate_of(changes, self.tasks, self.mean)
        weights = question_weights(self.tasks, self.mean)
        limits = paired_rate_limits([weights[name] * value for name, value in changes.items()]).times(100)
        lost = [name for name in old if old[name] and not new[name]]
        gained = [name for name in old if new[name] and not old[name]]
        error = percent(change.standard_error)
        row = ComparedChoices(
            suite=self.suite,
            name=self.name,
            tasks=len(old),
            whole=self.whole,
            before=100 * self.rate(mode).value,
            before_error=percent(self.rate(mode).standard_error),
            after=100 * after.rate(mode).value,
            after_error=percent(after.rate(mode).standard_error),
            difference=100 * change.value,
            difference_error=error,
            low=limits.low,
            high=limits.high,
            lost=lost,
            gained=gained,
            p_value=mcnemar_exact(len(lost), len(gained)),
            tolerance=options.tolerance,
            verdict=conclusion(limits, options.tolerance),
            mode=mode,
            other_before=100 * self.rate(other).value,
            other_after=100 * after.rate(other).value,
            free_after=100 * max(after.rate(mode).value, after.rate(other).value),
        )
        return [row]


class ComparedChoices(ComparedRate):
    """One set. mode: the way of asking that counts on both sides, which is the one in which `before` was better.

    Letting each side choose its own way would hide losses. other_before, other_after: the rates of the other way;
    free_after: what `after` would have by its own better way, all in percentage points.
    """

    title: ClassVar[str] = "Questions, by the way of asking in which `before` was better"
    columns: ClassVar[tuple[str, ...]] = (*ComparedRate.columns, "by", "the other way", "after, its own choice")
    kind: Literal["choices"] = "choices"
    mode: Mode
    other_before: float
    other_after: float
    free_after: float

    def cells(self) -> tuple[Cell, ...]:
        others = f"{self.other_before:.2f} -> {self.other_after:.2f}"
        return (*super().cells(), self.mode, others, rounded(self.free_after))


def score_choices(
    source: TaskSource, set_title: str, mean: Mean, tasks: Mapping[str, ChoiceAnswer], fewer_examples: int
) -> ChoicesScore:
    """Sums up a set. Of two equal rates generation is kept, which is how the model is used."""
    rates = {
        mode: rate_of({name: float(task.right(mode)) for name, task in tasks.items()}, tasks, mean) for mode in MODES
    }
    golds = [task.gold for task in tasks.values()]
    return ChoicesScore(
        suite=source.suite,
        name=source.name,
        file=source.file,
        file_sha256=source.sha256,
        whole=source.whole,
        set_title=set_title,
        mean=mean,
        generation=rates["generation"],
        perplexity=rates["perplexity"],
        kept="generation" if rates["generation"].value >= rates["perplexity"].value else "perplexity",
        majority=max(golds.count(value) for value in set(golds)) / len(golds),
        fewer_examples=fewer_examples,
        no_letter=sum(task.generation is None for task in tasks.values()),
        tasks=dict(tasks),
    )


def rate_of(values: Mapping[str, float], tasks: Mapping[str, ChoiceAnswer], mean: Mean) -> ChoiceRate:
    """Mean of a value a question, over all of them or over the subjects' means, and its standard error.

    Subjects are strata: the variance of the plain mean of S subject means is the sum of their variances over S squared.
    """
    strata: dict[str, list[float]] = {}
    for name, value in values.items():
        strata.setdefault(tasks[name].subject if mean == "subjects" else "", []).append(value)
    means = [mean_and_error(stratum) for stratum in strata.values()]
    variance = math.fsum(error**2 for _, error in means) / len(means) ** 2
    return ChoiceRate(
        value=math.fsum(value for value, _ in means) / len(means),
        standard_error=None if math.isnan(variance) else math.sqrt(variance),
    )


def question_weights(tasks: Mapping[str, ChoiceAnswer], mean: Mean) -> dict[str, float]:
    """What each question counts for in the mean over all of them: 1, or more in a subject of few questions."""
    sizes = Counter(task.subject for task in tasks.values())
    if mean == "questions":
        return dict.fromkeys(tasks, 1.0)
    return {name: len(tasks) / (len(sizes) * sizes[task.subject]) for name, task in tasks.items()}
