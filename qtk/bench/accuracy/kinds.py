"""The kinds of score: a new one is one file with a `Score` and a `Measure`, and one line here.

The measures are named, not imported: reading and comparing results needs none of what measuring needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtk.bench.accuracy.results.choices import ChoicesScore, ComparedChoices
from qtk.bench.accuracy.results.harness import ComparedMetric, HarnessScore
from qtk.bench.accuracy.results.likelihood import ComparedLikelihood, LikelihoodScore
from qtk.bench.accuracy.results.programs import ComparedPrograms, ProgramsScore
from qtk.bench.accuracy.results.score import ComparedRow, Score

if TYPE_CHECKING:
    from qtk.bench.accuracy.measures.measure import Measure
    from qtk.bench.accuracy.options import AccuracyOptions


@dataclass(frozen=True)
class Kind:
    """One kind of score. measure: "module:class" of the `Measure` whose scores these are."""

    score: type[Score]
    compared: type[ComparedRow]
    measure: str


_MEASURES = "qtk.bench.accuracy.measures"
KINDS = {
    "programs": Kind(ProgramsScore, ComparedPrograms, f"{_MEASURES}.programs:ProgramsMeasure"),
    "likelihood": Kind(LikelihoodScore, ComparedLikelihood, f"{_MEASURES}.likelihood:LikelihoodMeasure"),
    "choices": Kind(ChoicesScore, ComparedChoices, f"{_MEASURES}.choices:ChoicesMeasure"),
    "lm-eval": Kind(HarnessScore, ComparedMetric, f"{_MEASURES}.harness:HarnessMeasure"),
}


def kind_of(name: object) -> Kind:
    """The kind of that name. ValueError for an unknown one."""
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{name!r} is not a kind of score: {', '.join(KINDS)}")
    return KINDS[name]


def measure_of(name: str) -> Callable[[AccuracyOptions], Measure[Any]]:
    """What makes a kind's measure from the options of a run, imported now. ValueError for an unknown kind."""
    module, _, measure = kind_of(name).measure.partition(":")
    measure_class: Callable[[AccuracyOptions], Measure[Any]] = getattr(importlib.import_module(module), measure)
    return measure_class
