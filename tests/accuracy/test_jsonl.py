"""JSON lines: a bad line is named, half a line of a killed run is cut off, and what follows is appended whole."""

from __future__ import annotations

import gzip

import pytest

from qtk.bench.accuracy.jsonl import complete_rows, read_rows, write_row
from qtk.errors import InputError


def test_every_bad_line_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\nnot json\n[]\n')
    with pytest.raises(InputError, match=r"(?s)rows.jsonl is not a file of JSON lines.*line 3.*line 4: not an object"):
        read_rows(file)
    file.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_rows(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "absent.jsonl")


def test_compressed_lines_are_read(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress('{"a": "é"}\n'.encode()))
    assert read_rows(file) == [{"a": "é"}]


def test_half_a_line_is_cut_off_and_the_rest_is_appended(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert complete_rows(file) == []
    with open(file, "a", encoding="utf-8") as stream:
        write_row(stream, {"a": 1})
        stream.write('{"a": "cut of')
    assert complete_rows(file) == [{"a": 1}]
    with open(file, "a", encoding="utf-8") as stream:
        write_row(stream, {"a": "two\nlines"})
    assert complete_rows(file) == [{"a": 1}, {"a": "two\nlines"}]


def test_lines_that_were_not_written_are_refused_or_cut_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    with open(file, "a", encoding="utf-8") as stream:
        for number in range(3):
            write_row(stream, {"verdict": "failed", "number": number})
    written = file.read_text()
    file.write_text(written + '{"verdict": "passed", "number": 3}\n')
    assert len(complete_rows(file)) == 3
    assert file.read_text() == written
    for line in (1, 3):
        lines = written.splitlines(keepends=True)
        lines[line - 1] = lines[line - 1].replace("failed", "passed")
        file.write_text("".join(lines))
        with pytest.raises(InputError, match=f"line {line} was changed"):
            complete_rows(file)
    file.write_text(written.split("\n", 1)[1])
    with pytest.raises(InputError, match="line 1 was changed"):
        complete_rows(file)


def test_a_truncated_gzip_file_is_named(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"task_id": 1}\n' * 100)[:-12])
    with pytest.raises(InputError, match="truncated gzip"):
        read_rows(path)
