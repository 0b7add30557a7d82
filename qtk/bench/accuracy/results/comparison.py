"""Two accuracy results of the same tasks side by side: what changed, how certain that is, and whether too much was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from qtk.bench.accuracy.kinds import kind_of
from qtk.bench.accuracy.results.baseline import Baseline, load_baseline
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import ComparedRow, CompareOptions, Score
from qtk.errors import InputError, listing

COMPARISON_NAME = "comparison.json"


def _compared(value: Any) -> Any:
    return value if isinstance(value, ComparedRow) else kind_of(value.get("kind")).compared.model_validate(value)


class Comparison(BaseModel):
    """The result of `qtk bench compare`. differences: what differs between the runs without making them incomparable."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["qtk-accuracy-comparison"] = "qtk-accuracy-comparison"
    before: str
    after: str
    tolerance: float
    likelihood_tolerance: float
    rules: str
    rows: list[Annotated[SerializeAsAny[ComparedRow], BeforeValidator(_compared)]]
    baseline: Baseline | None
    differences: list[str]

    @property
    def published(self) -> str | None:
        """What the published figures in the rows are; None where no row has any."""
        return self.baseline.summary if self.baseline and any(row.published for row in self.rows) else None

    @property
    def passed(self) -> bool:
        """Whether every verdict says that no more was lost than is tolerated, and there is one."""
        return not self.gate_failure

    @property
    def verdict(self) -> str:
        """The verdict on all rows together."""
        if self.beyond:
            return "beyond tolerance"
        return "within tolerance" if self.passed else "too few tasks to tell"

    @property
    def beyond(self) -> list[ComparedRow]:
        """The rows of which more was lost than is tolerated."""
        return [row for row in self.rows if row.verdict == "beyond tolerance"]

    @property
    def untold(self) -> list[ComparedRow]:
        """The rows of which the tasks do not tell whether the loss is tolerated."""
        return [row for row in self.rows if row.verdict == "too few tasks to tell"]

    @property
    def gate_failure(self) -> str:
        """Why a gate does not let this pass, which wants evidence that no more was lost than is tolerated; "" where it does."""
        lines = [
            f"{row.label}: {row.change}, tolerance {row.tolerance:g}: more than is tolerated" for row in self.beyond
        ]
        lines += [f"{row.label}: {_too_few(row)}" for row in self.untold]
        if not any(row.verdict for row in self.rows):
            lines.append("no figure has a verdict: there is nothing to go by")
        return f"The comparison does not show that the loss is tolerable:\n{listing(lines)}" if lines else ""


def _too_few(row: ComparedRow) -> str:
    worst = "" if row.low is None else f", at worst {row.low:+.4g} {row.unit}"
    enough = (
        ""
        if row.enough_tasks is None
        else f"; about {max(row.enough_tasks, row.tasks + 1):,} such {row.evidence.split()[-1]} could tell"
    )
    return f"{row.change}{worst}, tolerance {row.tolerance:g}: {row.evidence} are too few to tell{enough}"


def compare(before: AccuracyResult, after: AccuracyResult, options: CompareOptions) -> Comparison:
    """Pairs the tasks of two results. InputError, with every reason, when they were not scored on the same terms."""
    baseline = load_baseline(options.baseline)
    old, new = _by_name(before), _by_name(after)
    _require_comparable(before, after)
    return Comparison(
        before=before.model or before.answers or "",
        after=after.model or after.answers or "",
        tolerance=options.tolerance,
        likelihood_tolerance=options.likelihood_tolerance,
        rules=before.rules,
        rows=_rows([(score, new[key]) for key, score in old.items() if key in new], options),
        baseline=baseline,
        differences=_differences(before, after),
    )


def _rows(pairs: Sequence[tuple[Score, Score]], options: CompareOptions) -> list[ComparedRow]:
    """A row for each pair, and after those of a suite what they come to together."""
    suites: dict[tuple[str, str], list[tuple[Score, Score]]] = {}
    for before, after in pairs:
        suites.setdefault((before.kind, before.suite), []).append((before, after))
    rows = []
    for same in suites.values():
        rows += [row for before, after in same for row in before.compare(after, options)]
        rows += same[0][0].compare_pooled(same, options) if len(same) > 1 else []
    return rows


def read_comparison(directory: Path) -> Comparison:
    """The comparison in an output directory of `qtk bench compare`. InputError when there is none."""
    file = directory / COMPARISON_NAME
    try:
        return Comparison.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise InputError(f"{file} is not a comparison of `qtk bench compare`.") from None


def _by_name(result: AccuracyResult) -> Mapping[tuple[str, str, str], Score]:
    return {(score.kind, score.suite, score.name): score for score in result.scores}


def _require_comparable(before: AccuracyResult, after: AccuracyResult) -> None:
    old, new = _by_name(before), _by_name(after)
    reasons = []
    if before.rules != after.rules:
        reasons.append(f"extraction rules: {before.rules} before, {after.rules} after")
    # How answers from a file were asked for is not known: that is noted, see _differences.
    if None not in (before.chat_format, after.chat_format) and before.chat_format != after.chat_format:
        reasons.append(f"chat format: {before.chat_format} before, {after.chat_format} after")
    common = [key for key in old if key in new]
    if not common:
        reasons.append("no suite and language is in both")
    for key in common:
        _, *names = key
        if old[key].file_sha256 != new[key].file_sha256:
            reasons.append(f"{' '.join(names)}: the task files differ")
        elif apart := old[key].tasks.keys() ^ new[key].tasks.keys():
            reasons.append(f"{' '.join(names)}: {len(apart)} tasks are only in one of the two, such as {min(apart)}")
    if reasons:
        raise InputError(f"The two results were not made on the same terms:\n{listing(reasons)}")


def _differences(before: AccuracyResult, after: AccuracyResult) -> list[str]:
    """What differs between the runs without making them incomparable: to be read beside the figures."""
    only_one = sorted(_by_name(before).keys() ^ _by_name(after).keys())
    notes = [f"{suite} {name} is only in one of the two" for _, suite, name in only_one]
    given = [side for side, result in (("before", before), ("after", after)) if result.model is None]
    if len(given) == 1:
        notes.append(f"the answers of {given[0]} come from a file: how they were asked for and decoded is not known")
    else:
        notes += _changed("decoding", before.decoding, after.decoding)
    return notes + _changed("sandbox", before.sandbox, after.sandbox, ("level", "limits"))


def _changed(what: str, before: Mapping[str, Any], after: Mapping[str, Any], keys: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{what}, {key}: {before.get(key)} before, {after.get(key)} after"
        for key in keys or sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
