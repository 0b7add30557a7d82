"""Scores and comparisons as tables: one for each kind, whatever the kinds are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qtk.bench.accuracy.results.score import Cell, ComparedRow, Score


@dataclass(frozen=True)
class ResultTable:
    """A title, the columns' names, and the lines."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def score_tables(scores: Iterable[Score]) -> list[ResultTable]:
    """A table for each kind of score, in the order in which the kinds first occur."""
    kinds: dict[str, list[Score]] = {}
    for score in scores:
        kinds.setdefault(score.kind, []).append(score)
    return [
        ResultTable(same[0].title, same[0].columns, tuple(row for score in same for row in score.rows()))
        for same in kinds.values()
    ]


def named_score_tables(results: Iterable[tuple[str, Iterable[Score]]]) -> list[ResultTable]:
    """As `score_tables`, for several results at once: the first column says whose scores a line shows."""
    kinds: dict[str, list[tuple[str, Score]]] = {}
    for owner, scores in results:
        for score in scores:
            kinds.setdefault(score.kind, []).append((owner, score))
    return [
        ResultTable(
            same[0][1].title,
            ("measured", *same[0][1].columns),
            tuple((owner, *row) for owner, score in same for row in score.rows()),
        )
        for same in kinds.values()
    ]


def compared_tables(rows: Iterable[ComparedRow]) -> list[ResultTable]:
    """A table for each kind of compared rows; its title says which loss is tolerated."""
    kinds: dict[str, list[ComparedRow]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return [
        ResultTable(
            f"{same[0].title}; tolerance {same[0].tolerance:g} {same[0].unit}; limits of the change with 95 % confidence each",
            same[0].columns,
            tuple(row.cells() for row in same),
        )
        for same in kinds.values()
    ]
