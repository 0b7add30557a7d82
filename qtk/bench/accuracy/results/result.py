"""The result of an accuracy run: what was scored, under which rules, and every task's verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qtk.bench.accuracy.likelihood import LikelihoodScore
from qtk.bench.accuracy.results.choice_scores import ChoiceScore
from qtk.bench.accuracy.results.harness_scores import HarnessScore
from qtk.bench.accuracy.results.statistics import mean_and_error, pass_at_k
from qtk.bench.results import RESULT_NAME
from qtk.errors import InputError


class PassRate(BaseModel):
    """pass@k over the tasks, between 0 and 1, and its standard error (None with fewer than two tasks)."""

    model_config = ConfigDict(frozen=True)
    k: int
    value: float
    standard_error: float | None


class LanguageScore(BaseModel):
    """One language of one suite. `tasks`: task_id -> a verdict a sample."""

    model_config = ConfigDict(frozen=True)
    suite: str
    language: str
    file: str
    file_sha256: str
    pass_at: list[PassRate]
    verdicts: dict[str, int]
    tasks: dict[str, list[str]]

    def rates(self) -> dict[str, float]:
        """task_id -> share of its samples that passed."""
        return {key: _passed(verdicts) / len(verdicts) for key, verdicts in self.tasks.items()}


class AccuracyResult(BaseModel):
    """The content of result.json.

    model: the engine or model directory, or None for answers from a file. rules: whose extraction and program assembly
    was used. likelihood: one entry a language of a likelihood suite. choices: one entry a set of questions. lm_eval:
    one entry a task of lm-evaluation-harness. skipped: suite and language -> why it was not scored. sandbox: level,
    what it promises, limits (empty: no program was run).
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["qtk-accuracy"] = "qtk-accuracy"
    qtk_version: str
    model: str | None
    answers: str | None
    rules: str
    prompt_format: str | None
    decoding: dict[str, Any]
    sandbox: dict[str, str]
    scores: list[LanguageScore]
    likelihood: list[LikelihoodScore] = Field(default_factory=list)
    choices: list[ChoiceScore] = Field(default_factory=list)
    lm_eval: list[HarnessScore] = Field(default_factory=list)
    skipped: dict[str, str] = Field(default_factory=dict)
    seconds: float
    machine: dict[str, object]

    @field_validator("rules")
    @classmethod
    def _processor_named(cls, rules: str) -> str:
        """Results of earlier versions do not name the processor: every answer went through this one."""
        return "codefuse:llama34b" if rules == "codefuse" else rules


def score_language(
    suite: str, language: str, file: str, sha256: str, tasks: Mapping[str, Sequence[str]], ks: Sequence[int]
) -> LanguageScore:
    """pass@k and the counts. `tasks`: task_id -> the verdicts of its samples. InputError for a k beyond the samples."""
    fewest = min(len(verdicts) for verdicts in tasks.values())
    if too_large := [k for k in ks if k > fewest]:
        raise InputError(f"pass@{too_large[0]} needs {too_large[0]} samples of every task; there are {fewest}.")
    rates = []
    for k in ks:
        mean, error = mean_and_error([pass_at_k(len(v), _passed(v), k) for v in tasks.values()])
        rates.append(PassRate(k=k, value=mean, standard_error=error if error == error else None))
    counts = Counter(verdict for verdicts in tasks.values() for verdict in verdicts)
    return LanguageScore(
        suite=suite,
        language=language,
        file=file,
        file_sha256=sha256,
        pass_at=rates,
        verdicts=dict(counts.most_common()),
        tasks={key: list(verdicts) for key, verdicts in tasks.items()},
    )


def _passed(verdicts: Sequence[str]) -> int:
    return sum(verdict == "passed" for verdict in verdicts)


def read_result(path: Path) -> AccuracyResult:
    """The result in a file, or in an output directory's result.json. InputError when it is none."""
    file = path / RESULT_NAME if path.is_dir() else path
    try:
        return AccuracyResult.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise InputError(f"{file} is no result of `qtk bench accuracy`.") from None
