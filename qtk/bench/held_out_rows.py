"""Token rows of text that no model was calibrated on: two built-in texts that need no download, or the user's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from qtk.bench.options import CODE, ENGLISH
from qtk.calibration.held_out import standard_library_modules
from qtk.calibration.rows import TokenRows, as_token_rows, pack_rows
from qtk.calibration.sources import Sample, samples
from qtk.errors import InputError
from qtk.models.tokenizer import ChatFormat, TextTokenizer

BUILT_IN = {
    CODE: "modules of Python's standard library that calibration never takes",
    ENGLISH: "the prose of Python's own reference documentation",
}
_SHORTEST_PARAGRAPH = 15  # words; shorter ones are headings, signatures and grammar


def held_out_rows(
    source: str, tokenizer: TextTokenizer, rows: int, seq_len: int, chat_format: ChatFormat = "model"
) -> TokenRows:
    """At most `rows` rows of at most `seq_len` tokens from a built-in text or a .txt/.jsonl/.parquet file.

    InputError when the source does not hold a row of two tokens (one to predict from, and one to predict).
    """
    if source == CODE:
        token_rows = _code_rows(tokenizer, rows, seq_len)
    elif source == ENGLISH:
        token_rows = pack_rows(_english(), tokenizer, rows, seq_len, chat_format)
    elif Path(source).suffix:
        token_rows = pack_rows(samples(source, 0), tokenizer, rows, seq_len, chat_format)
    else:
        raise InputError(f"{source!r} is neither a file nor a built-in held-out text ({', '.join(BUILT_IN)}).")
    token_rows = [row for row in token_rows if len(row) > 1]
    if not token_rows:
        raise InputError(f"{source} does not hold any text to measure on.")
    return as_token_rows(token_rows, seq_len)


def _by_hash(name: str) -> str:
    """A sort key: stable, and independent of the alphabet."""
    return hashlib.sha256(name.encode()).hexdigest()


def _code_rows(tokenizer: TextTokenizer, count: int, seq_len: int) -> list[list[int]]:
    """One full row of each module, then a second one of each, and so on: so that few rows already come from many modules."""
    bos = tokenizer.bos_ids
    room = seq_len - len(bos)
    modules = sorted(standard_library_modules(held_out=True), key=lambda module: _by_hash(module[0]))
    encoded: dict[str, list[int]] = {}
    rows: list[list[int]] = []
    start, left = 0, modules
    while left and len(rows) < count:
        still = []
        for name, path in left:
            if name not in encoded:
                encoded[name] = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
            ids = encoded[name][start : start + room]
            if len(ids) == room:
                rows.append(bos + ids)
                still.append((name, path))
            if len(rows) == count:
                break
        start, left = start + room, still
    return rows


def _english() -> Iterator[Sample]:
    """Paragraphs of prose from the reference topics that `pydoc` shows; code, grammar and tables are left out."""
    from pydoc_data.topics import topics

    for name in sorted(topics, key=_by_hash):
        paragraphs = []
        for block in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(line.strip() for line in block.splitlines())
            prose = not block[:1].isspace() and text[-1:] in (".", ":")
            if prose and len(text.split()) >= _SHORTEST_PARAGRAPH:
                paragraphs.append(text)
        if paragraphs:
            yield Sample(text="\n\n".join(paragraphs) + "\n\n")
