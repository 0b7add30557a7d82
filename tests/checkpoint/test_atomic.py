"""A file is there whole or not at all."""

from __future__ import annotations

import pytest

from qtk.checkpoint.atomic import atomic_file, unfinished_files, write_atomic


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize(("content", "expected"), [("später\n", "später\n".encode()), (b"\xff\x00", b"\xff\x00")])
def test_a_file_is_replaced_as_a_whole(tmp_path, content: str | bytes, expected: bytes, flush: bool) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    write_atomic(path, content, flush=flush)
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_when_the_work_fails(tmp_path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"half")
        stream.flush()
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "state.json", "x")


def test_what_a_killed_command_left_is_known_by_its_name(tmp_path) -> None:
    with atomic_file(tmp_path / "state.json") as stream:
        left = set(tmp_path.iterdir())
        stream.write(b"half")
        (tmp_path / "state.json.old.partial").touch()
        (tmp_path / "own.partial").mkdir()
        assert set(unfinished_files(tmp_path, "*")) == set(unfinished_files(tmp_path, "state.json")) == left
        assert unfinished_files(tmp_path, "other.json") == []
