"""Two accuracy results of the same tasks, held against each other: what changed, how surely, and is it too much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.bench.accuracy.likelihood import LikelihoodScore, paired_likelihoods
from qtk.bench.accuracy.results.choice_comparison import ChoiceComparison, compare_choices
from qtk.bench.accuracy.results.choice_scores import ChoiceScore
from qtk.bench.accuracy.results.comparison_rows import LanguageComparison, PublishedPair, Verdict, points, verdict
from qtk.bench.accuracy.results.harness_scores import HarnessComparison, HarnessScore, compare_harness
from qtk.bench.accuracy.results.result import AccuracyResult, LanguageScore
from qtk.bench.accuracy.results.statistics import mcnemar_exact, mean_and_error, paired_difference
from qtk.errors import InputError, listing
from qtk.shipped import find_yaml, read_yaml

_BASELINES = "bench/baselines"


class CompareOptions(BaseModel):
    """What is called too much, and what is printed beside."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tolerance: float = Field(2.0, ge=0, description="Largest loss of pass@1 to accept, in percentage points.")
    likelihood_tolerance: float = Field(
        0.05, ge=0, description="Largest loss of mean log-likelihood to accept, in nats per token."
    )
    baseline: str = Field(
        "codefuse-deepseek-33b-int4", description="Published before/after to print beside: a name, a YAML file or none."
    )


class Baseline(BaseModel):
    """A published comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    summary: str
    suite: str
    tasks: int
    scores: dict[str, PublishedPair]


class LikelihoodComparison(BaseModel):
    """One language of a likelihood suite: mean log-likelihood of the references, nats per token, before and after.

    difference: after - before, paired by task, with its standard error. p_value: two-sided, from the ratio of the two
    in the normal approximation (None with fewer than two tasks). worse: tasks whose likelihood fell. verdict: the loss
    against the tolerance for likelihoods.
    """

    model_config = ConfigDict(frozen=True)
    suite: str
    language: str
    tasks: int
    before: float
    after: float
    difference: float
    difference_error: float | None
    p_value: float | None
    worse: int
    verdict: Verdict


class Comparison(BaseModel):
    """The result of `qtk bench compare`."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["qtk-accuracy-comparison"] = "qtk-accuracy-comparison"
    before: str
    after: str
    tolerance: float
    likelihood_tolerance: float
    rules: str
    languages: list[LanguageComparison]
    likelihood: list[LikelihoodComparison] = Field(default_factory=list)
    choices: list[ChoiceComparison] = Field(default_factory=list)
    lm_eval: list[HarnessComparison] = Field(default_factory=list)
    baseline: Baseline | None
    differences: list[str]

    @property
    def rates(self) -> list[LanguageComparison]:
        """Every line with a verdict: the languages, then the sets of questions."""
        return [*self.languages, *self.choices]

    @property
    def beyond(self) -> list[str]:
        """Whose measured loss is above the tolerance, and how large it is."""
        rows = [(f"{row.suite} {row.language}", row.difference, row.verdict) for row in self.rates]
        rows += [(f"{row.task} {row.metric}", 100 * row.difference, row.verdict) for row in self.lm_eval if row.verdict]
        found = [f"{name} ({lost:+.2f} points)" for name, lost, verdict in rows if verdict.startswith("beyond")]
        return found + [
            f"{row.suite} {row.language} ({row.difference:+.4f} nats)"
            for row in self.likelihood
            if row.verdict.startswith("beyond")
        ]


def compare(before: AccuracyResult, after: AccuracyResult, options: CompareOptions) -> Comparison:
    """Pairs the tasks of two results. InputError, with every reason, when they were not scored on the same terms."""
    baseline = load_baseline(options.baseline)
    first = {(score.suite, score.language): score for score in before.scores}
    second = {(score.suite, score.language): score for score in after.scores}
    likely = {(score.suite, score.language): score for score in before.likelihood}
    likely_after = {(score.suite, score.language): score for score in after.likelihood}
    asked = {(score.suite, score.set): score for score in before.choices}
    asked_after = {(score.suite, score.set): score for score in after.choices}
    tasks = {(score.suite, score.language): score for score in before.lm_eval}
    tasks_after = {(score.suite, score.language): score for score in after.lm_eval}
    old: Scores = {**first, **likely, **asked, **tasks}
    new: Scores = {**second, **likely_after, **asked_after, **tasks_after}
    _require_comparable(before, after, old, new)
    rows = [_compare_language(first[key], second[key], options.tolerance, baseline) for key in first if key in second]
    return Comparison(
        before=before.model or before.answers or "",
        after=after.model or after.answers or "",
        tolerance=options.tolerance,
        likelihood_tolerance=options.likelihood_tolerance,
        rules=before.rules,
        languages=rows,
        likelihood=[
            _compare_likelihood(likely[key], likely_after[key], options.likelihood_tolerance)
            for key in likely
            if key in likely_after
        ],
        choices=[
            compare_choices(asked[key], asked_after[key], options.tolerance) for key in asked if key in asked_after
        ],
        lm_eval=[
            row
            for key in tasks
            if key in tasks_after
            for row in compare_harness(tasks[key], tasks_after[key], options.tolerance)
        ],
        baseline=baseline,
        differences=_differences(before, after, old, new),
    )


Scores = Mapping[tuple[str, str], LanguageScore | LikelihoodScore | ChoiceScore | HarnessScore]


def _require_comparable(before: AccuracyResult, after: AccuracyResult, first: Scores, second: Scores) -> None:
    wrong = []
    if before.rules != after.rules:
        wrong.append(f"extraction rules: {before.rules} before, {after.rules} after")
    # Of answers from a file nobody knows how they were asked for: that is noted, see _differences.
    if None not in (before.prompt_format, after.prompt_format) and before.prompt_format != after.prompt_format:
        wrong.append(f"prompt format: {before.prompt_format} before, {after.prompt_format} after")
    if not first.keys() & second.keys():
        wrong.append("no suite and language is in both")
    for key in first.keys() & second.keys():
        name = " ".join(key)
        if first[key].file_sha256 != second[key].file_sha256:
            wrong.append(f"{name}: the task files differ")
        elif apart := first[key].tasks.keys() ^ second[key].tasks.keys():
            wrong.append(f"{name}: {len(apart)} tasks are only in one of the two, such as {min(apart)}")
    if wrong:
        raise InputError(f"The two results were not made on the same terms:\n{listing(wrong)}")


def _differences(before: AccuracyResult, after: AccuracyResult, first: Scores, second: Scores) -> list[str]:
    """What differs between the runs without making them incomparable: to be read beside the figures."""
    found = [f"{' '.join(key)} is only in one of the two" for key in sorted(first.keys() ^ second.keys())]
    given = [name for name, result in (("before", before), ("after", after)) if result.model is None]
    if len(given) == 1:
        found.append(f"the answers of {given[0]} come from a file: how they were asked for and decoded is not known")
        return found + _of_sandbox(before, after)
    for key in sorted(before.decoding.keys() | after.decoding.keys()):
        if (old := before.decoding.get(key)) != (new := after.decoding.get(key)):
            found.append(f"decoding, {key}: {old} before, {new} after")
    return found + _of_sandbox(before, after)


def _of_sandbox(before: AccuracyResult, after: AccuracyResult) -> list[str]:
    return [
        f"sandbox, {key}: {old} before, {new} after"
        for key in ("level", "limits")
        if (old := before.sandbox.get(key)) != (new := after.sandbox.get(key))
    ]


def _compare_language(
    before: LanguageScore, after: LanguageScore, tolerance: float, baseline: Baseline | None
) -> LanguageComparison:
    old, new = before.rates(), after.rates()
    names = list(old)
    lost = [name for name in names if new[name] < old[name]]
    gained = [name for name in names if new[name] > old[name]]
    single = all(len(verdicts) == 1 for score in (before, after) for verdicts in score.tasks.values())
    old_mean, old_error = mean_and_error([old[name] for name in names])
    new_mean, new_error = mean_and_error([new[name] for name in names])
    difference, error = paired_difference([old[name] for name in names], [new[name] for name in names])
    published = baseline.scores.get(before.language) if baseline and baseline.suite == before.suite else None
    return LanguageComparison(
        suite=before.suite,
        language=before.language,
        tasks=len(names),
        before=100 * old_mean,
        before_error=points(old_error),
        after=100 * new_mean,
        after_error=points(new_error),
        difference=100 * difference,
        difference_error=points(error),
        lost=lost,
        gained=gained,
        p_value=mcnemar_exact(len(lost), len(gained)) if single else None,
        verdict=verdict(100 * difference, points(error), tolerance),
        published=published,
    )


def _compare_likelihood(before: LikelihoodScore, after: LikelihoodScore, tolerance: float) -> LikelihoodComparison:
    pairs = list(paired_likelihoods(before, after))
    difference, error = paired_difference([old for old, _ in pairs], [new for _, new in pairs])
    known = not math.isnan(error)
    return LikelihoodComparison(
        suite=before.suite,
        language=before.language,
        tasks=len(pairs),
        before=before.mean,
        after=after.mean,
        difference=difference,
        difference_error=error if known else None,
        p_value=(math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0))
        if known
        else None,
        worse=sum(new < old for old, new in pairs),
        verdict=verdict(difference, error if known else None, tolerance),
    )


def load_baseline(name: str) -> Baseline | None:
    """A published comparison by name or YAML path; None for "none"."""
    if name == "none":
        return None
    return read_yaml(find_yaml(_BASELINES, name, "baseline"), Baseline, "baseline")


def plot(comparison: Comparison, path: Path) -> None:
    """Draws pass@1 before and after with standard errors, and the published pairs, into a .png, .svg or .pdf file.

    Where there is no pass rate, the changes of the likelihoods are drawn. InputError when there is neither.
    """
    import matplotlib

    if not comparison.rates and not comparison.likelihood:
        raise InputError("There is nothing to draw: the results have neither pass rates nor likelihoods in common.")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(comparison.rates or comparison.likelihood)
    figure, axes = pyplot.subplots(figsize=(min(3.0 + 1.1 * count, 18.0), 4.2), layout="constrained")
    _draw_rates(comparison, axes) if comparison.rates else _draw_likelihoods(comparison, axes)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None
    finally:
        pyplot.close(figure)


def _draw_likelihoods(comparison: Comparison, axes: Any) -> None:
    rows = comparison.likelihood
    axes.bar(
        range(len(rows)),
        [row.difference for row in rows],
        0.5,
        yerr=[row.difference_error or 0.0 for row in rows],
        capsize=3,
        color="#d18f52",
    )
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.axhline(-comparison.likelihood_tolerance, color="black", linewidth=0.8, linestyle=":", label="tolerance")
    axes.set_xticks(range(len(rows)), [f"{row.suite}\n{row.language}" for row in rows])
    axes.set_ylabel("change of log-likelihood, nats per token, ± standard error")
    axes.legend(fontsize="small", frameon=False)


def _draw_rates(comparison: Comparison, axes: Any) -> None:
    width, places = 0.36, range(len(comparison.rates))
    for offset, name, color in ((-width / 2, "before", "#7a9cc6"), (width / 2, "after", "#d18f52")):
        axes.bar(
            [place + offset for place in places],
            [getattr(row, name) for row in comparison.rates],
            width,
            yerr=[getattr(row, f"{name}_error") or 0.0 for row in comparison.rates],
            capsize=3,
            label=name,
            color=color,
        )
        published = [
            (place + offset, getattr(row.published, name))
            for place, row in zip(places, comparison.rates, strict=True)
            if row.published is not None
        ]
        if published:
            label = f"published, {name}"
            axes.plot(
                *zip(*published, strict=True), "D", markersize=5, markeredgecolor="black", color=color, label=label
            )
    axes.set_xticks(list(places), [f"{row.suite}\n{row.language}" for row in comparison.rates])
    axes.set_ylabel("pass@1 (%), ± standard error" if not comparison.choices else "right (%), ± standard error")
    # Small rates are to be seen too; the tops of the error bars are in the picture, up to all that can be passed.
    axes.set_ylim(0, min(100.0, max(1.0, 1.15 * axes.dataLim.y1)))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
