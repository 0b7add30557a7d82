"""What is checked before anything is generated or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.kinds import measure_of
from qtk.bench.accuracy.measures.measure import Loaded, Measure
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.suites.suites import MissingData, SuitePart, chosen_parts
from qtk.errors import InputError, listing

Measures = Mapping[str, Measure[Any]]


def require_measurable(parts: Sequence[SuitePart], measures: Measures, source: AnswerSource) -> None:
    """InputError for a part that is given twice, and for suites that read probabilities where the source shows none."""
    labels = [part.label for part in parts]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise InputError(f"These are given twice: {', '.join(sorted(twice))}.")
    readers = list(dict.fromkeys(part.suite.name for part in parts if "logits" in measures[part.suite.kind].needs))
    if readers and source.without_logits is not None:
        raise InputError(f"Probabilities are needed for {', '.join(readers)}. {source.without_logits}")


def require_some_set(parts: Sequence[SuitePart], loaded: Sequence[Loaded]) -> None:
    """InputError for a suite none of whose sets was found: the suites that belong to it would hide that."""
    names = {data.part.suite.name for data in loaded}
    for part in parts:
        if part.suite.sets and part.suite.name not in names:
            files = listing(choice_set.file for choice_set in part.suite.sets.values())
            raise MissingData(
                f"None of the sets of {part.suite.name} was found. Name the folder that holds them with --data DIR or the "
                f"environment variable QTK_DATA, or download some from the hub with --hub:\n{files}"
            )


def require_scorable(loaded: Sequence[Loaded], measures: Measures, source: AnswerSource) -> None:
    """InputError with the refusals of every measure."""
    reasons = []
    for kind, measure in measures.items():
        if of_kind := [data for data in loaded if data.part.suite.kind == kind]:
            reasons += measure.refusals(of_kind, source)
    if reasons:
        raise InputError("\n".join(reasons))


def require_programs(options: AccuracyOptions) -> None:
    """InputError when programs are to be kept and none of the suites asks for programs."""
    kinds = {part.suite.kind for text in options.suite for part in chosen_parts(text)}
    if not any("sandbox" in measure_of(kind)(options).needs for kind in kinds):
        raise InputError(
            "--save-generations keeps the programs that a model writes, and none of these suites asks for programs. "
            "Leave it out: answers to questions are in the files of the output directory."
        )
