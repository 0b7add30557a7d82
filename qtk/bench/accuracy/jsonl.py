"""Files of JSON lines: read strictly, written so that a killed run keeps every line, and continued after such a run."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from qtk.bounded.files import read_bounded
from qtk.errors import InputError, listing
from qtk.sizes import size_text

_LIMIT = 400_000_000  # bytes of a file, unpacked: two hundred answers to each task of a suite take a sixth of it


def _unpacked(path: Path) -> bytes:
    content = read_bounded(path, _LIMIT)
    if path.suffix != ".gz":
        return content
    with gzip.open(io.BytesIO(content)) as stream:
        unpacked = stream.read(_LIMIT + 1)
    if len(unpacked) > _LIMIT:
        raise InputError(f"{path} unpacks to more than {size_text(_LIMIT)}, so it is not what it is taken for.")
    return unpacked


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file. InputError names the file and every line that is not a JSON object."""
    try:
        lines = _unpacked(path).decode("utf-8").split("\n")
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
    """The rows that an earlier run has written with `write_row`, none where there is no file.

    A killed run may have left half a line at the end, or a line whose digest was not written any more: that is cut off the
    file, so that rows can be appended. InputError where a line is not the one that was written.
    """
    if not path.exists():
        return []
    data, chain = path.read_bytes(), chain_of(path)
    lines = data.split(b"\n")[:-1]
    digests = chain.read_text(encoding="ascii").split() if chain.exists() else []
    before, kept = "", 0
    for number, (line, digest) in enumerate(zip(lines, digests, strict=False), 1):
        if _digest(before, line) != digest:
            raise InputError(
                f"{path} is not as the stopped run left it: line {number} was changed. Run the command without --resume."
            )
        before, kept = digest, number
    whole = b"".join(line + b"\n" for line in lines[:kept])
    if len(whole) != len(data):
        path.write_bytes(whole)
    if kept != len(digests):
        chain.write_text("".join(f"{digest}\n" for digest in digests[:kept]), encoding="ascii")
    return read_rows(path)


def write_row(stream: IO[str], row: Mapping[str, object]) -> None:
    """Writes one line and flushes it, so that a killed run keeps it. A file beside it gets a digest of the line and of the
    digest before: what a resumed run takes over is what was written."""
    line = json.dumps(row, ensure_ascii=False)
    stream.write(line + "\n")
    stream.flush()
    with open(chain_of(Path(stream.name)), "a+", encoding="ascii") as chain:
        chain.seek(max(0, chain.seek(0, os.SEEK_END) - _DIGEST_LENGTH - 1))
        chain.write(f"{_digest(chain.read().strip(), line.encode())}\n")


def chain_of(path: Path) -> Path:
    """The file of the digests of a file's lines."""
    return path.with_name(path.name + _CHAIN)


def chain_files(directory: Path) -> list[Path]:
    """The digests of lines, which go when a run is complete: from then on its manifest says what was written."""
    return sorted(directory.glob(f"*{_CHAIN}"))


_CHAIN, _DIGEST_LENGTH = ".chain", 64


def _digest(before: str, line: bytes) -> str:
    return hashlib.sha256(before.encode() + line).hexdigest()
