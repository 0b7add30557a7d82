"""What a set scored: by generation, by perplexity, and which of the two counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.results.statistics import mean_and_error

Mode = Literal["generation", "perplexity"]
MODES: tuple[Mode, Mode] = ("generation", "perplexity")


class ChoiceAnswer(BaseModel):
    """One question: the right option, the one that was generated (None: no letter was found), the likeliest one."""

    model_config = ConfigDict(frozen=True)
    subject: str = ""
    gold: int
    generation: int | None
    perplexity: int

    def right(self, mode: Mode) -> bool:
        return getattr(self, mode) == self.gold


class ChoiceRate(BaseModel):
    """Share of right answers, between 0 and 1, and its standard error (None where a single question leaves none)."""

    model_config = ConfigDict(frozen=True)
    value: float
    standard_error: float | None


class ChoiceScore(BaseModel):
    """One set. kept: the mode with the higher rate. majority: what always answering the commonest option would score.

    mean: "questions", or "subjects": the plain mean of the subjects' rates. fewer_examples: how many questions were
    asked with fewer examples than the set wants, because the engine could not hold more.
    """

    model_config = ConfigDict(frozen=True)
    suite: str
    set: str
    title: str
    file: str
    file_sha256: str
    mean: Literal["questions", "subjects"]
    generation: ChoiceRate
    perplexity: ChoiceRate
    kept: Mode
    majority: float
    fewer_examples: int
    no_letter: int
    tasks: dict[str, ChoiceAnswer]

    def rate(self, mode: Mode) -> ChoiceRate:
        found: ChoiceRate = getattr(self, mode)
        return found


def score_choices(
    suite: str, name: str, title: str, file: str, sha256: str, mean: Literal["questions", "subjects"],
    tasks: dict[str, ChoiceAnswer], fewer_examples: int,
) -> ChoiceScore:  # fmt: skip
    """Sums up a set; of two equal rates generation is kept, which is how the model is used."""
    rates = {
        mode: rate_of({name: float(task.right(mode)) for name, task in tasks.items()}, tasks, mean) for mode in MODES
    }
    golds = [task.gold for task in tasks.values()]
    return ChoiceScore(
        suite=suite,
        set=name,
        title=title,
        file=file,
        file_sha256=sha256,
        mean=mean,
        generation=rates["generation"],
        perplexity=rates["perplexity"],
        kept="generation" if rates["generation"].value >= rates["perplexity"].value else "perplexity",
        majority=max(golds.count(value) for value in set(golds)) / len(golds),
        fewer_examples=fewer_examples,
        no_letter=sum(task.generation is None for task in tasks.values()),
        tasks=tasks,
    )


def rate_of(
    values: Mapping[str, float], tasks: Mapping[str, ChoiceAnswer], mean: Literal["questions", "subjects"]
) -> ChoiceRate:
    """Mean of a value a question, over all of them or over the subjects' means, and its standard error.

    Subjects are strata: the variance of the plain mean of S subject means is the sum of theirs over S squared.
    """
    strata: dict[str, list[float]] = {}
    for name, value in values.items():
        strata.setdefault(tasks[name].subject if mean == "subjects" else "", []).append(value)
    parts = [mean_and_error(found) for found in strata.values()]
    variance = math.fsum(error**2 for _, error in parts) / len(parts) ** 2
    return ChoiceRate(
        value=math.fsum(value for value, _ in parts) / len(parts),
        standard_error=None if math.isnan(variance) else math.sqrt(variance),
    )
