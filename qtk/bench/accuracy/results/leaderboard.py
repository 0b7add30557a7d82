"""Average score and Win Rate among published models, as the Big Code models leaderboard defines them.

Average score: the plain mean of a model's pass@1 over the languages. Win Rate: in each language the models are ranked by
pass@1, ties sharing their mean rank; of N models rank r gives N - (r - 1) points; the mean of the points over the
languages. It is not a percentage: it lies between 1 and N, and depends on the other models in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.bench.accuracy.results.programs import ProgramsScore
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.tables import ResultTable
from qtk.bench.accuracy.suites.suites import load_suite
from qtk.errors import InputError, listing
from qtk.shipped import find_yaml, read_yaml

_ROOM = "bench/baselines/leaderboards"
_PYTHON = ("humaneval", "python")


class LeaderboardOptions(BaseModel):
    """Which published models a model is ranked among."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reference: str = Field("bigcode", description="Published models to rank among: a name or a YAML file.")


class ReferenceModel(BaseModel):
    """A published model: pass@1 in percent, in the order of the table's languages; average and win_rate as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    source: str
    scores: tuple[float, ...]
    average: float | None = None
    win_rate: float | None = None


class ReferenceTable(BaseModel):
    """Published models. sources: what the `source` of a model means."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str
    summary: str
    source: str
    languages: tuple[str, ...]
    sources: dict[str, str]
    models: dict[str, ReferenceModel]


class Standing(BaseModel):
    """One line. scores: language -> pass@1 in percent. win_rate: beside which result -> Win Rate.

    A published model has a Win Rate beside each result, a result only its own.
    """

    model_config = ConfigDict(frozen=True)
    model: str
    published: bool
    average: float
    win_rate: dict[str, float]
    scores: dict[str, float]


class Leaderboard(BaseModel):
    """The result of `qtk bench leaderboard`. models: how many are ranked; absent: the columns that no rank counts."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["qtk-leaderboard"] = "qtk-leaderboard"
    reference: str
    source: str
    models: int
    languages: list[str]
    absent: list[str]
    standings: list[Standing]

    def table(self) -> ResultTable:
        """The standings; measured models are marked with ">"."""
        results = [row.model for row in self.standings if not row.published]
        rates = ["Win Rate"] if len(results) == 1 else [f"Win Rate beside {name}" for name in sorted(results)]
        rows = [
            (
                row.model if row.published else f"> {row.model}",
                row.average,
                *(row.win_rate.get(name) for name in sorted(results)),
                *(row.scores[language] for language in self.languages),
            )
            for row in self.standings
        ]
        count = len(self.languages)
        title = f"pass@1 (%) in {count} languages; Win Rate: 1 to {self.models}, the number of models"
        return ResultTable(title, ("model", "average", *rates, *self.languages), tuple(rows))


def win_rates(scores: Sequence[Sequence[float]]) -> list[float]:
    """The models' Win Rates, rounded as the leaderboard does. scores[model][language]: pass@1."""
    points = [0.0] * len(scores)
    for column in zip(*scores, strict=True):
        for model, value in enumerate(column):
            above = sum(other > value for other in column)
            equal = sum(other == value for other in column)
            rank = above + (equal + 1) / 2  # ties share the mean of their ranks
            points[model] += len(column) - (rank - 1)
    return [round(total / len(scores[0]), 2) for total in points]


def load_reference(name: str) -> ReferenceTable:
    """A table that ships, by name, or one from a YAML file by path. InputError names every model whose row is too short."""
    path = find_yaml(_ROOM, name, "reference table")
    table = read_yaml(path, ReferenceTable, "reference table")
    count = len(table.languages)
    short = [f"{name}: {len(row.scores)} scores" for name, row in table.models.items() if len(row.scores) != count]
    if short or not table.models:
        raise InputError(
            f"{path} has {count} languages, but some models have another number of scores:\n{listing(short)}"
        )
    return table


def leaderboard(results: dict[str, AccuracyResult], options: LeaderboardOptions) -> Leaderboard:
    """Ranks each result among the published models, one at a time: together they would displace each other.

    Only the languages that all results have are counted. InputError when there is none, or when a language was scored in
    part.
    """
    table = load_reference(options.reference)
    measured = {name: _rates(result) for name, result in results.items()}
    languages = [language for language in table.languages if all(language in rates for rates in measured.values())]
    _require_whole(results, languages)
    if not languages:
        raise InputError(
            f"The results have no language in common with {table.name}. The suite `leaderboard` has its languages: python "
            "from humaneval, the others from multipl-e."
        )
    places = [table.languages.index(language) for language in languages]
    published = {name: [row.scores[place] for place in places] for name, row in table.models.items()}
    beside: dict[str, dict[str, float]] = {name: {} for name in [*published, *measured]}
    for name, rates in measured.items():
        names = [*published, name]
        winning = win_rates([*published.values(), [rates[language] for language in languages]])
        for model, rate in zip(names, winning, strict=True):
            beside[model][name] = rate
    rows = [(name, True, scores) for name, scores in published.items()]
    rows += [(name, False, [rates[language] for language in languages]) for name, rates in measured.items()]
    standings = [
        Standing(
            model=name,
            published=is_published,
            average=round(sum(scores) / len(scores), 2),
            win_rate=beside[name],
            scores=dict(zip(languages, scores, strict=True)),
        )
        for name, is_published, scores in rows
    ]
    return Leaderboard(
        reference=table.name,
        source=table.source,
        models=len(published) + 1,
        languages=languages,
        absent=[language for language in table.languages if language not in languages],
        standings=sorted(standings, key=lambda row: -max(row.win_rate.values())),
    )


def _column(suite: str, language: str) -> str | None:
    if (suite, language) == _PYTHON:
        return "python"
    return language if suite == "multipl-e" else None


def _programs(result: AccuracyResult) -> list[ProgramsScore]:
    return [score for score in result.scores if isinstance(score, ProgramsScore)]


def _rates(result: AccuracyResult) -> dict[str, float]:
    """Column -> pass@1 in percent, with the two decimals that the leaderboard ranks by."""
    rates = {}
    for score in _programs(result):
        if column := _column(score.suite, score.name):
            shares = score.rates().values()
            rates[column] = round(100 * sum(shares) / len(shares), 2)
    return rates


def _require_whole(results: dict[str, AccuracyResult], languages: list[str]) -> None:
    partial = []
    for name, result in results.items():
        for score in _programs(result):
            if _column(score.suite, score.name) in languages:
                count = load_suite(score.suite).languages[score.name].tasks
                if len(score.tasks) != count:
                    partial.append(f"{name}: {score.suite} {score.name}, {len(score.tasks)} of {count} tasks")
    if partial:
        raise InputError(f"Only whole suites are ranked; these were scored in part:\n{listing(partial)}")
