"""The result of an accuracy run: what was scored, under which rules, and every task's outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from qtk.bench.accuracy.kinds import kind_of
from qtk.bench.accuracy.results.score import Score
from qtk.bench.results import RESULT_NAME
from qtk.bounded.files import read_bounded
from qtk.errors import InputError


def _score(value: Any) -> Any:
    return value if isinstance(value, Score) else kind_of(value.get("kind")).score.model_validate(value)


class AccuracyResult(BaseModel):
    """The content of result.json.

    model: the engine or model directory, or None for answers from a file. rules: whose extraction and program assembly
    was used. chat_format: how the model was asked, None for answers from a file. scores: one a language, set or task, of
    any kind. skipped: suite and language -> why it was not scored. sandbox: level, what it promises, limits (empty: no
    program was run).
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["qtk-accuracy"] = "qtk-accuracy"
    qtk_version: str
    model: str | None
    answers: str | None
    rules: str
    chat_format: str | None
    decoding: dict[str, Any]
    sandbox: dict[str, str]
    scores: list[Annotated[SerializeAsAny[Score], BeforeValidator(_score)]]
    skipped: dict[str, str] = Field(default_factory=dict)
    seconds: float
    machine: dict[str, object]

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, data: Any) -> Any:
        return _from_four_lists(data) if isinstance(data, dict) and "prompt_format" in data else data

    @field_validator("rules")
    @classmethod
    def _with_a_processor(cls, rules: str) -> str:
        """Results of earlier versions do not name the processor, because every answer went through the same one."""
        return "codefuse:llama34b" if rules == "codefuse" else rules


# Until version 0.1 a result had a list of its own for each kind of score, and other words for the chat format.
_OLD_LISTS = {"scores": "programs", "likelihood": "likelihood", "choices": "choices", "lm_eval": "lm-eval"}
_OLD_FORMATS = {"plain": "none", "chat": "model"}
_OLD_FIELDS = {"language": "name", "set": "name", "title": "set_title"}


def _from_four_lists(old: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result.json of that time as it would be written today."""
    new = {key: value for key, value in old.items() if key not in (*_OLD_LISTS, "prompt_format")}
    new["scores"] = [
        {"kind": kind, **{_OLD_FIELDS.get(key, key): value for key, value in score.items()}}
        for old_list, kind in _OLD_LISTS.items()
        for score in old.get(old_list, [])
    ]
    chat_format = old["prompt_format"]
    new["chat_format"] = _OLD_FORMATS.get(chat_format, chat_format)
    # How many rows ran at once was recorded for sampled answers, which it does not change.
    decoding = {key: value for key, value in old.get("decoding", {}).items() if key not in ("prompt", "batch_size")}
    new["decoding"] = {"chat_format": new["chat_format"], **decoding} if decoding else {}
    return new


def read_result(path: Path) -> AccuracyResult:
    """The result in a file, or in an output directory's result.json. InputError when there is none."""
    file = path / RESULT_NAME if path.is_dir() else path
    try:
        return AccuracyResult.model_validate_json(read_bounded(file))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise InputError(f"{file} is not a result of `qtk bench accuracy`.") from None
