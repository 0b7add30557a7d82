"""The rows of a set: read from JSON lines, nested JSON or one CSV a subject into fields, options and the right option."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.jsonl import read_rows
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.errors import InputError, listing

BLANK = "______"


@dataclass(frozen=True)
class QuestionRow:
    """One question as the data has it. fields: for the templates; gold: the index of the right option.

    subject: the part of the set that it belongs to ("" for a set without subjects). shots: the rows that are shown before
    it as examples.
    """

    id: str
    fields: dict[str, Any]
    options: tuple[str, ...]
    gold: int
    subject: str = ""
    shots: tuple[QuestionRow, ...] = field(default=(), repr=False)


RawQuestions = Iterator[tuple[dict[str, Any], tuple[str, ...], Any]]


def plain(row: dict[str, Any], choice_set: ChoiceSet) -> RawQuestions:
    """A question with the options of the set."""
    yield row, choice_set.options, row[choice_set.label]


def idiom(row: dict[str, Any], choice_set: ChoiceSet) -> RawQuestions:
    """CHID: `content` has #idiom# where one of the `candidates` belongs; `parts` are what stands before and after."""
    before, mark, after = row["content"].partition("#idiom#")
    if not mark:
        raise ValueError("content does not hold #idiom#")
    yield {"content": f"{before}{BLANK}{after}", "parts": (before, after)}, tuple(row["candidates"]), row["answer"]


def dialogue(row: Any, choice_set: ChoiceSet) -> RawQuestions:
    """C3: [lines of a passage, questions, id], one to several questions a passage, of up to four options."""
    lines, questions, _ = row
    for question in questions:
        options = tuple(question["choice"])
        answer = options.index(question["answer"]) if question["answer"] in options else None
        yield {"passage": "\n".join(lines), "question": question["question"]}, options, answer


def pronoun(row: dict[str, Any], choice_set: ChoiceSet) -> RawQuestions:
    """WSC: two spans, given by the index of their first word; the first is marked with * and the second with #."""
    target, words = row.get("target", row), row["text"].split(" ")
    for span, mark in (("span1", "*"), ("span2", "#")):
        start = target[f"{span}_index"]
        last = min(start + len(target[f"{span}_text"].split(" ")), len(words)) - 1
        words[start] = f"{mark} {words[start]}"
        words[last] = f"{words[last]} {mark}"
    names = {"span1": target["span1_text"], "span2": target["span2_text"]}
    yield {**names, "marked": " ".join(words)}, choice_set.options, row[choice_set.label]


def science(row: dict[str, Any], choice_set: ChoiceSet) -> RawQuestions:
    """ARC: the stem and its options with labels, nested as published or flat as on the hub. Questions of four only."""
    nested = isinstance(row["question"], dict)
    stem = row["question"]["stem"] if nested else row["question"]
    choices = row["question"]["choices"] if nested else row["choices"]
    texts = [choice["text"] for choice in choices] if nested else choices["text"]
    labels = [choice["label"] for choice in choices] if nested else choices["label"]
    if len(texts) == 4:
        yield {"question": stem}, tuple(texts), labels.index(row["answerKey"]) if row["answerKey"] in labels else None


def of_subject(row: dict[str, Any], choice_set: ChoiceSet) -> RawQuestions:
    """MMLU and C-Eval: a question, four options under one of three spellings, the answer as an index or a letter."""
    if "choices" in row:
        options = tuple(row["choices"])
    else:
        first = "choice0" in row
        options = tuple(row[f"choice{index}" if first else letter] for index, letter in enumerate("ABCD"))
    answer = str(row["answer"]).strip()
    yield {"question": row["question"]}, options, "ABCD".index(answer) if answer in tuple("ABCD") else answer


READERS: dict[str, Callable[[Any, ChoiceSet], RawQuestions]] = {
    "rows": plain, "idiom": idiom, "dialogue": dialogue, "pronoun": pronoun, "science": science, "subjects": of_subject,
}  # fmt: skip


def read_set(name: str, choice_set: ChoiceSet, path: Path) -> list[QuestionRow]:
    """The questions of a set from its file or folder. InputError names every row that lacks something."""
    if choice_set.reader != "subjects":
        return as_rows(name, choice_set, _json_rows(path), str(path))
    folder = path / Path(choice_set.file).name if (path / Path(choice_set.file).name).is_dir() else path
    files = subject_files(folder)
    if not files:
        raise InputError(f"{folder} does not hold any .csv file (expected one for each subject).")
    shots: dict[str, list[QuestionRow]] = {}
    if choice_set.shots and choice_set.shots_file is not None:
        examples = subject_files(folder.parent / Path(choice_set.shots_file).name)
        if absent := sorted(files.keys() - examples.keys()):
            raise InputError(
                f"{folder.parent / Path(choice_set.shots_file).name} lacks the examples of:\n{listing(absent)}"
            )
        for subject in files:
            shots[subject] = as_rows(name, choice_set, _csv_rows(examples[subject]), str(examples[subject]), subject)
    questions: list[QuestionRow] = []
    for subject, file in files.items():
        questions += as_rows(name, choice_set, _csv_rows(file), str(file), subject, shots.get(subject, []))
    return questions


def as_rows(
    name: str,
    choice_set: ChoiceSet,
    rows: Iterable[Any],
    where: str,
    subject: str = "",
    shots: Sequence[QuestionRow] = (),
) -> list[QuestionRow]:
    """Raw rows -> questions. A row whose label is not one of the set's has no answer and is left out.

    where: what an error calls the source of the rows.
    """
    questions: list[QuestionRow] = []
    complaints: list[str] = []
    for number, row in enumerate(rows):
        question_id = f"{name}/{subject}/{number}" if subject else f"{name}/{number}"
        try:
            for part, (fields, options, label) in enumerate(READERS[choice_set.reader](row, choice_set)):
                gold = _gold(label, choice_set, len(options))
                if gold is not None:
                    row_id = f"{question_id}.{part}" if choice_set.reader == "dialogue" else question_id
                    questions.append(
                        QuestionRow(row_id, fields, options, gold, subject, tuple(shots[: choice_set.shots]))
                    )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            complaints.append(f"row {number + 1}: {f'no field {error}' if isinstance(error, KeyError) else error}")
    if complaints:
        raise InputError(f"{where} does not hold questions of {choice_set.title}:\n{listing(complaints)}")
    return questions


def _gold(label: Any, choice_set: ChoiceSet, options: int) -> int | None:
    """The index of the right option, or None for a row without an answer."""
    if choice_set.labels:
        return next(
            (i for i, names in enumerate(choice_set.labels) if str(label).lower() in map(str.lower, names)), None
        )
    if label is None or str(label) == "":
        return None
    index = int(label)
    return index if 0 <= index < options else None


def subject_files(folder: Path) -> dict[str, Path]:
    """Subject -> its .csv, whose name is the subject and the split: anatomy_test.csv."""
    return {path.stem.rsplit("_", 1)[0]: path for path in sorted(folder.glob("*.csv"))}


def _json_rows(path: Path) -> list[Any]:
    """JSON lines, or one JSON list."""
    with open(path, encoding="utf-8") as stream:
        head = stream.read(64).lstrip()
    if not head.startswith("["):
        return read_rows(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
    return list(rows)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """A CSV with a header, or one without as MMLU publishes them: question, four options, letter."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}.") from None
    if not lines:
        raise InputError(f"{path} is empty.")
    header = lines[0]
    if "question" in header:
        return [dict(zip(header, line, strict=False)) for line in lines[1:]]
    return [dict(zip(("question", "A", "B", "C", "D", "answer"), line, strict=False)) for line in lines]
