"""The rows of a task: JSONL files in the formats that MFTCoder reads, and a few more, each as turns of a conversation or a text.

The format with the most fields that a row has is the row's: an Alpaca row (instruction, input, output) keeps its instruction,
though it has the fields of an input/output row too. Among formats with equally many, the first in `PAIRS` counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qtk.bounded.parsing import parse_bounded_json
from qtk.calibration.held_out import standard_library_modules
from qtk.calibration.sources import STANDARD_LIBRARY
from qtk.errors import InputError, listing

Role = Literal["system", "user", "assistant"]

# (fields that make up the prompt, field of the answer). Two prompt fields are joined by a newline.
PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("prompt",), "answer"),
    (("prompt",), "response"),
    (("input",), "output"),
    (("instruction", "input"), "output"),
    (("instruction", "input"), "response"),
    (("instruction",), "output"),
    (("instruction",), "response"),
    (("question",), "response"),
    (("question",), "answer"),
    (("query",), "answer"),
)
_ROUNDS = ("chat_rounds", "messages")
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "bot": "assistant",
    "assistant": "assistant",
    "gpt": "assistant",
}
_CHARACTERS_OF_A_MODULE = 32768  # more than any row takes of a module of the standard library


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    text: str


@dataclass(frozen=True)
class TrainingRow:
    """One row: `turns` of a conversation, or a plain `text` that is learnt from its first token on.

    pair: a prompt and an answer, which MFTCoder encodes a little differently from a conversation. cut: a text that is cut
    at the length limit instead of being dropped. where: file and line, for messages.
    """

    where: str
    turns: tuple[Turn, ...] = ()
    text: str = ""
    pair: bool = False
    cut: bool = False


@dataclass(frozen=True)
class TrainingTask:
    """One task: what it is called, and its rows. files: what was read, for the manifest."""

    name: str
    rows: tuple[TrainingRow, ...]
    files: tuple[Path, ...] = ()


def data_files(source: str) -> tuple[Path, ...]:
    """The files of a source: a JSONL file, or every *.jsonl below a folder, sorted; none for the standard library.

    InputError for a source without any.
    """
    if source == STANDARD_LIBRARY:
        return ()
    path = Path(source)
    if path.is_file():
        return (path,)
    if not path.exists():
        raise InputError(
            f"The data {source} does not exist: a JSONL file, a folder of them or {STANDARD_LIBRARY} is needed."
        )
    files = tuple(sorted(path.rglob("*.jsonl")))
    if not files:
        raise InputError(f"The data folder {source} holds no *.jsonl file.")
    return files


def read_tasks(sources: tuple[str, ...]) -> list[TrainingTask]:
    """The tasks in the order of their sources. Each is called as its folder, or as its file without the ending.

    InputError naming every bad row by file and line, for a name that two tasks share, and for a task without rows.
    """
    tasks: list[TrainingTask] = []
    faults: list[str] = []
    for source in sources:
        files = data_files(source)
        rows: list[TrainingRow] = []
        for row in _rows(source, files):
            if isinstance(row, TrainingRow):
                rows.append(row)
            else:
                faults.append(row)
        tasks.append(TrainingTask(_name(source), tuple(rows), files))
    if faults:
        raise InputError(f"{len(faults)} rows of the data cannot be used:\n{listing(faults)}")
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Several tasks are called {', '.join(twice)}. Rename their folders or files.")
    if empty := [source for source, task in zip(sources, tasks, strict=True) if not task.rows]:
        raise InputError(f"There are no rows in {', '.join(empty)}.")
    return tasks


def _name(source: str) -> str:
    path = Path(source).resolve()
    return source if source == STANDARD_LIBRARY else path.stem if path.is_file() else path.name


def _rows(source: str, files: tuple[Path, ...]) -> Iterator[TrainingRow | str]:
    if source == STANDARD_LIBRARY:
        for name, path in standard_library_modules(held_out=False):
            text = path.read_text(encoding="utf-8", errors="replace")[:_CHARACTERS_OF_A_MODULE]
            if text.strip():
                yield TrainingRow(where=name, text=text, cut=True)
        return
    for file in files:
        yield from _rows_of_file(file)


def _rows_of_file(file: Path) -> Iterator[TrainingRow | str]:
    """The rows of a JSONL file; a sentence in place of a row that cannot be used. Blank lines are passed over."""
    try:
        # Lines end at \n only: JSON allows other separators of lines inside a text.
        with open(file, encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row_of_line(line, f"{file}, line {number}")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}.") from None


def _row_of_line(line: str, where: str) -> TrainingRow | str:
    try:
        return parse_row(parse_bounded_json(line), where)
    except InputError as error:
        return str(error)
    except ValueError as error:
        return f"{where}: not valid JSON: {error}"


def parse_row(row: Any, where: str) -> TrainingRow:
    """A parsed JSON row in its most specific format. InputError, beginning with `where`, for a row of no use."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: not a JSON object")
    pairs = [(fields, answer) for fields, answer in PAIRS if all(name in row for name in (*fields, answer))]
    if pairs:
        return _pair(row, *max(pairs, key=lambda pair: len(pair[0])), where)
    for field in _ROUNDS:
        if row.get(field):
            return _conversation(row[field], field, where)
    if isinstance(row.get("text"), str) and row["text"].strip():
        return TrainingRow(where=where, text=row["text"])
    raise InputError(
        f"{where}: none of the known formats (prompt and answer, instruction and output, chat_rounds, messages, text, ...); "
        f"its fields are {', '.join(map(str, row)) or 'none'}"
    )


def _pair(row: Mapping[str, Any], fields: tuple[str, ...], answer: str, where: str) -> TrainingRow:
    for name in (*fields, answer, "system"):
        if not isinstance(row.get(name, ""), str):
            raise InputError(f"{where}: {name} is not a text")
    if not row[answer].strip():
        raise InputError(f"{where}: its {answer} is empty, so there is nothing to learn")
    prompt = "\n".join(row[name] for name in fields if row[name])
    turns = (Turn("user", prompt), Turn("assistant", row[answer]))
    system = (Turn("system", row["system"]),) if row.get("system") else ()
    return TrainingRow(where=where, turns=(*system, *turns), pair=True)


def _conversation(rounds: Any, field: str, where: str) -> TrainingRow:
    """Turns that alternate, the human's first, with a system text in front or not. The last may be the human's."""
    turns: list[Turn] = []
    if not isinstance(rounds, list):
        raise InputError(f"{where}: {field} is not a list")
    for number, item in enumerate(rounds, start=1):
        role, text = (item.get("role"), item.get("content")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(role, str) or role not in _ROLES or not isinstance(text, str):
            raise InputError(f"{where}: turn {number} of {field} needs a role ({', '.join(_ROLES)}) and a content")
        turns.append(Turn(_ROLES[role], text))
    spoken = [turn for turn in turns if turn.role != "system"]
    if len(turns) - len(spoken) > (turns[0].role == "system"):
        raise InputError(f"{where}: a system text is allowed as the first turn of {field} only")
    for number, turn in enumerate(spoken):
        if turn.role != ("user", "assistant")[number % 2]:
            raise InputError(f"{where}: the turns of {field} must alternate, the human's first")
    answers = [turn for turn in spoken if turn.role == "assistant"]
    if not answers:
        raise InputError(f"{where}: no answer in {field}, so there is nothing to learn")
    if not all(turn.text.strip() for turn in answers):
        raise InputError(f"{where}: an answer in {field} is empty")
    return TrainingRow(where=where, turns=tuple(turns))
