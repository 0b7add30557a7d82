"""Makes what a model reads from a row: the prompt that asks for a letter, and one text an option for perplexity."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from jinja2 import StrictUndefined, Template, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qtk.bench.accuracy.choices.rows import QuestionRow
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.errors import InputError

LETTERS = "ABCDEFG"
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
_ANSWER_IS = r"(?:answer|option|choice)(?:\s+(?:is|was|should be))?\s*[:：]?\s*[\"'(*]*"
_ANSWER_IS_CHINESE = r"(?:答案|选项|选择|应选|选)(?:应该?)?(?:是|为)?\s*[:：]?\s*[“\"'(（*]*"


@dataclass(frozen=True)
class Question:
    """One question, ready to ask. prompt: asks for a letter. texts: one an option, of which the likeliest is the answer."""

    id: str
    subject: str
    gold: int
    options: int
    prompt: str
    texts: tuple[str, ...]


def question(choice_set: ChoiceSet, row: QuestionRow, shots: int | None = None) -> Question:
    """The set's templates filled with a row, after `shots` of the row's examples (default: as many as the set wants)."""
    examples = row.shots[: choice_set.shots if shots is None else shots]
    front = "".join(f"{_ask(choice_set, example)}{_gap(choice_set)}{LETTERS[example.gold]}\n\n" for example in examples)
    prompt = front + _ask(choice_set, row)
    return Question(row.id, row.subject, row.gold, len(row.options), prompt, _texts(choice_set, row, prompt))


def _ask(choice_set: ChoiceSet, row: QuestionRow) -> str:
    lines = [_fill(choice_set.ask, row, {})]
    lines += [f"{LETTERS[index]}. {option}" for index, option in enumerate(_options(choice_set, row))]
    return "\n".join([*lines, choice_set.cue])


def _options(choice_set: ChoiceSet, row: QuestionRow) -> list[str]:
    """The options of a set are templates; the options of a row are data, and are never filled."""
    return [_fill(option, row, {}) for option in choice_set.options] if choice_set.options else list(row.options)


def _gap(choice_set: ChoiceSet) -> str:
    """What stands between cue and letter: a blank, or nothing after a full-width colon."""
    return " " if choice_set.cue.isascii() else ""


def _texts(choice_set: ChoiceSet, row: QuestionRow, prompt: str) -> tuple[str, ...]:
    return tuple(
        _fill(
            choice_set.text if isinstance(choice_set.text, str) else choice_set.text[index],
            row,
            {"option": option, "letter": f"{_gap(choice_set)}{LETTERS[index]}", "prompt": prompt},
        )
        for index, option in enumerate(_options(choice_set, row))
    )


def _fill(template: str, row: QuestionRow, more: dict[str, str]) -> str:
    try:
        return _compiled(template).render(**row.fields, **more, subject=row.subject.replace("_", " ")).strip()
    except UndefinedError as error:
        raise InputError(f"Question {row.id} lacks a field that its template uses: {error}.") from None


@functools.cache
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def picked(rule: str, text: str, options: int) -> int | None:
    """The index of the option that an answer names, or None.

    rule first_capital: the first capital letter of the answer, which must be one of the options. first_option: the letter
    that the answer calls its answer ("the answer is B"), else the first letter of an option that stands alone.
    """
    letters = LETTERS[:options]
    if rule == "first_capital":
        capital = re.search("[A-Z]", text)
        return letters.index(capital[0]) if capital and capital[0] in letters else None
    statement = _statement(letters).search(text)
    if statement:
        return letters.index(statement["letter"])
    alone = re.search(rf"(?<![A-Za-z'])[{letters}](?![A-Za-z'])", text)
    return letters.index(alone[0]) if alone else None


@functools.cache
def _statement(letters: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?i:{_ANSWER_IS})|{_ANSWER_IS_CHINESE})(?P<letter>[{letters}])(?![A-Za-z'])")


def answer_part(text: str, *, chat: bool) -> str:
    """The part of a generation that is its answer: all of it in a chat, else its first line that is not blank."""
    if chat:
        return text
    rest = text.lstrip()
    return rest.split("\n", 1)[0]


def certain(rule: str, text: str, options: int, *, chat: bool) -> bool:
    """Whether generation may stop, because nothing that could follow would change which option is picked."""
    if not chat and "\n" in text.lstrip():
        return True
    part = answer_part(text, chat=chat)
    if rule == "first_capital":
        return re.search("[A-Z]", part) is not None
    statement = _statement(LETTERS[:options]).search(part)
    return statement is not None and statement.end() < len(
        part
    )  # the character after it decides whether the letter stands alone
