"""From a row to what a model reads: the prompt that asks for a letter, and a text an option for perplexity."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from jinja2 import StrictUndefined, Template, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qtk.bench.accuracy.choices.rows import Row
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.errors import InputError

LETTERS = "ABCDEFG"
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
_SAID = r"(?:answer|option|choice)(?:\s+(?:is|was|should be))?\s*[:：]?\s*[\"'(*]*"
_SAID_CHINESE = r"(?:答案|选项|选择|应选|选)(?:应该?)?(?:是|为)?\s*[:：]?\s*[“\"'(（*]*"


@dataclass(frozen=True)
class Question:
    """One question, ready to ask. `prompt` asks for a letter; `texts`: one an option, the likeliest is the answer."""

    id: str
    subject: str
    gold: int
    options: int
    prompt: str
    texts: tuple[str, ...]


def question(about: ChoiceSet, row: Row, shots: int | None = None) -> Question:
    """The templates filled with a row, after `shots` of its examples (default: all that the set asks for)."""
    examples = row.shots[: about.shots if shots is None else shots]
    front = "".join(f"{_asked(about, one)}{_gap(about)}{LETTERS[one.gold]}\n\n" for one in examples)
    prompt = front + _asked(about, row)
    return Question(row.id, row.subject, row.gold, len(row.options), prompt, _texts(about, row, prompt))


def _asked(about: ChoiceSet, row: Row) -> str:
    lines = [_fill(about.ask, row, {})]
    lines += [f"{LETTERS[index]}. {option}" for index, option in enumerate(_options(about, row))]
    return "\n".join([*lines, about.cue])


def _options(about: ChoiceSet, row: Row) -> list[str]:
    """The set's options are templates; a row's own are data, and never filled."""
    return [_fill(option, row, {}) for option in about.options] if about.options else list(row.options)


def _gap(about: ChoiceSet) -> str:
    """Between cue and letter: a blank, but none after a full-width colon."""
    return " " if about.cue.isascii() else ""


def _texts(about: ChoiceSet, row: Row, prompt: str) -> tuple[str, ...]:
    return tuple(
        _fill(
            about.text if isinstance(about.text, str) else about.text[index],
            row,
            {"option": option, "letter": f"{_gap(about)}{LETTERS[index]}", "prompt": prompt},
        )
        for index, option in enumerate(_options(about, row))
    )


def _fill(template: str, row: Row, more: dict[str, str]) -> str:
    try:
        return _compiled(template).render(**row.fields, **more, subject=row.subject.replace("_", " ")).strip()
    except UndefinedError as error:
        raise InputError(f"Question {row.id} has not what its template asks for: {error}.") from None


@functools.cache
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def picked(rule: str, text: str, options: int) -> int | None:
    """The option that an answer names, or None.

    first_capital: its first capital letter, which must be one of the options. first_option: the letter that it says is
    the answer ("the answer is B"), else the first letter of an option that stands alone.
    """
    letters = LETTERS[:options]
    if rule == "first_capital":
        found = re.search("[A-Z]", text)
        return letters.index(found[0]) if found and found[0] in letters else None
    said = _said(letters).search(text)
    if said:
        return letters.index(said["letter"])
    alone = re.search(rf"(?<![A-Za-z'])[{letters}](?![A-Za-z'])", text)
    return letters.index(alone[0]) if alone else None


@functools.cache
def _said(letters: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?i:{_SAID})|{_SAID_CHINESE})(?P<letter>[{letters}])(?![A-Za-z'])")


def answer_part(text: str, *, chat: bool) -> str:
    """What of a generation is its answer: in a chat all of it, else its first line that is not blank."""
    if chat:
        return text
    rest = text.lstrip()
    return rest.split("\n", 1)[0]


def certain(rule: str, text: str, options: int, *, chat: bool) -> bool:
    """Whether nothing that may still come could change what is picked: generation may stop."""
    if not chat and "\n" in text.lstrip():
        return True
    part = answer_part(text, chat=chat)
    if rule == "first_capital":
        return re.search("[A-Z]", part) is not None
    said = _said(LETTERS[:options]).search(part)
    return said is not None and said.end() < len(part)  # the character after it decides whether the letter stands alone
