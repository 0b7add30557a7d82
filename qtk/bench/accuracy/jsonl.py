"""Files of JSON lines: read strictly, written so that a killed run keeps every line, and continued after such a run."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from qtk.errors import InputError, listing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file. InputError names the file and every line that is not a JSON object."""
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged or truncated gzip file: {error}. Copy or download it again.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}.") from None
    rows, complaints = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            complaints.append(f"line {number}: {error}")
            continue
        rows.append(row) if isinstance(row, dict) else complaints.append(f"line {number}: not an object")
    if complaints:
        raise InputError(f"{path} is not a file of JSON lines:\n{listing(complaints)}")
    return rows


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that an earlier run has written, none where there is no file.

    A killed run may have left half a line at the end: that is cut off the file, so that rows can be appended.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return read_rows(path)


def write_row(stream: IO[str], row: Mapping[str, object]) -> None:
    """Writes one line and flushes it, so that a killed run keeps it."""
    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    stream.flush()
