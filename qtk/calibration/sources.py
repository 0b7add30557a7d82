"""Where calibration text comes from: plain texts and conversations, one by one, from files, data sets or Python itself."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from qtk.bounded.parsing import parse_bounded_json
from qtk.calibration.held_out import standard_library_modules
from qtk.checkpoint.hub import out_of_reach, require_data_set
from qtk.errors import InputError, MachineError
from qtk.install_hints import install_hint, missing_package

_TEXT_FIELDS = ("text", "content", "code")
# MFTCoder's names for the two sides, as every chat template calls them; CodeFuse's format takes either.
_ROLES = {"human": "user", "bot": "assistant"}
STANDARD_LIBRARY = "python-stdlib"
_PLAIN_ENDINGS = (".txt", ".py", ".md")
_PIECE = 1 << 16  # letters of a plain text that are read at once
_LONGEST_LINE = 50_000_000
_SHUFFLED = 4096  # rows of a data set among which the seed chooses
FILE_ENDINGS = (*_PLAIN_ENDINGS, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Sample:
    """One piece of calibration data: plain `text`, or a conversation (`messages`: role and content)."""

    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()


def samples(source: str, seed: int) -> Iterator[Sample]:
    """The samples of a source, in a fixed order for a given seed. InputError for what is missing, empty or unreadable."""
    path = Path(source)
    if source == STANDARD_LIBRARY:
        return _standard_library(seed)
    if path.suffix in _PLAIN_ENDINGS:
        return _from_text(path)
    if path.suffix == ".jsonl":
        return _shuffled(_from_jsonl(path), seed)
    if path.suffix == ".parquet":
        return _shuffled(_from_parquet(path), seed)
    if path.exists():
        raise InputError(f"{path}: calibration files end in .txt, .jsonl or .parquet.")
    return _shuffled(_from_hub(source), seed)


def _shuffled(rows: Iterator[Sample], seed: int) -> Iterator[Sample]:
    """The first `_SHUFFLED` rows in random order, then the others: data sets are often sorted by language or task, and a
    few rows are all that is read."""
    first = list(itertools.islice(rows, _SHUFFLED))
    random.Random(seed).shuffle(first)  # noqa: S311 - a reproducible choice, not a secret
    yield from first
    yield from rows


def _standard_library(seed: int) -> Iterator[Sample]:
    """Excerpts of the standard library's modules that are not held out, each from another module, shuffled by seed."""
    modules = standard_library_modules(held_out=False)
    chooser = random.Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    chooser.shuffle(modules)
    while modules:  # once through all modules, then again from other offsets
        for _, path in modules:
            text = path.read_text(encoding="utf-8", errors="replace")
            # An excerpt, not the whole: so that a few rows already come from many modules.
            start = chooser.randrange(max(1, len(text) - 3000))
            yield Sample(text=text[text.rfind("\n", 0, start) + 1 :][:6000])


def _from_text(path: Path) -> Iterator[Sample]:
    """A plain text, in pieces that end where a line does."""
    with _opened(path) as stream:
        while piece := stream.read(_PIECE) + stream.readline(_PIECE):
            yield Sample(text=piece)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file to be read from its start. InputError for one that cannot be read, while it
    is read too."""
    try:
        if not path.is_file():
            path.open().close()  # says why
            raise InputError(f"{path} cannot be read: it is not a file.")
        with path.open(encoding="utf-8-sig") as stream:  # a byte order mark is not part of the text
            yield stream
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None


def _lines(path: Path) -> Iterator[str]:
    # Not splitlines: it cuts at U+2028 and the like too, which JSON allows inside a string.
    with _opened(path) as stream:
        while line := stream.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise InputError(f"{path} has a line of more than {_LONGEST_LINE:,} letters.")
            yield line


def _from_jsonl(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_bounded_json(line)
        except ValueError as error:
            raise InputError(f"{where} is not valid JSON: {error}") from None
        yield row_sample(row, where)


def _from_parquet(path: Path) -> Iterator[Sample]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise missing_package("Reading .parquet", "pyarrow", "datasets") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file: {error}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    number = 0
    try:
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield row_sample(row, f"{path}, row {number}")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is damaged after row {number}: {error}. Copy or download it again.") from None


def _from_hub(name: str) -> Iterator[Sample]:
    """A data set by id, "id", "id:config" or "id:config:split" (default split: train), read as a stream."""
    try:
        import datasets
    except ImportError:
        raise MachineError(
            f"{name!r} is not a file, and data sets cannot be loaded without the package datasets: "
            f"check the path, or {install_hint('datasets', 'datasets')}"
        ) from None
    parts = name.split(":")
    require_data_set(parts[0])
    try:
        rows = datasets.load_dataset(
            parts[0],
            parts[1] if len(parts) > 1 else None,
            split=parts[2] if len(parts) > 2 else "train",
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            yield row_sample(row, f"{name}, row {number}")
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        if out_of_reach(error):
            raise MachineError(f"The data set {name!r} cannot be read to its end: the hub is out of reach.") from None
        raise InputError(f"{name!r} is not a file here, and loading it as a data set failed: {error}") from None


def row_sample(row: Any, where: str) -> Sample:
    """A JSON row as a sample: `messages`, MFTCoder's `chat_rounds`, or a text field. InputError saying where otherwise."""
    if isinstance(row, str):
        return Sample(text=row)
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is not a JSON object.")
    for field in ("messages", "chat_rounds"):
        rounds = row.get(field)
        if rounds is not None:
            return Sample(messages=_messages(rounds, where, field))
    for field in _TEXT_FIELDS:
        if isinstance(row.get(field), str):
            return Sample(text=row[field])
    raise InputError(f"{where} has none of the fields messages, chat_rounds, {', '.join(_TEXT_FIELDS)}.")


def _messages(rounds: Any, where: str, field: str) -> tuple[Mapping[str, str], ...]:
    good = isinstance(rounds, Sequence) and all(
        isinstance(r, Mapping) and isinstance(r.get("role"), str) and isinstance(r.get("content"), str) for r in rounds
    )
    if not good or not rounds:
        raise InputError(f"{where}: {field} must be a list of objects with role and content.")
    roles = _ROLES if field == "chat_rounds" else {}
    return tuple({"role": roles.get(r["role"], r["role"]), "content": r["content"]} for r in rounds)
