"""What is read whole is a file of bounded size inside its directory, and one that changes is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtk.bounded.files import file_state, read_bounded, read_bounded_text, require_inside, require_unchanged
from qtk.errors import InputError


def test_a_file_is_read_up_to_a_size(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(InputError, match="longer than 4 bytes"):
        read_bounded(path, 4)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "folder", "link to zero"])
def test_what_is_not_a_file_neither_hangs_nor_fills_memory(tmp_path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to zero").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="cannot be read: it is"):
        read_bounded(tmp_path / name)


def test_a_pipe_of_a_shell_is_read(tmp_path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"name: x")
    os.close(writer)
    assert read_bounded(Path(f"/dev/fd/{reader}")) == b"name: x"
    os.close(reader)


def test_an_absent_file_is_the_callers_business(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "x")


def test_text_is_utf_8(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_bounded_text(tmp_path / "x")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "out/x", "x" * 300, "x/" * 3000])
def test_a_name_stays_inside_its_directory(tmp_path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "out").symlink_to(tmp_path)
    with pytest.raises(InputError, match="does not lie inside"):
        require_inside(tmp_path / "inside", name, "file.json")


def test_a_name_inside_is_taken(tmp_path) -> None:
    assert require_inside(tmp_path, "a/b.onnx", "file.json") == tmp_path / "a" / "b.onnx"


@pytest.mark.parametrize("change", ["grow", "replace", "rewrite", "remove"])
def test_a_file_that_changed_is_named(tmp_path, change: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = {path: file_state(path)}
    require_unchanged(before)
    if change == "grow":
        path.write_bytes(b"three")
        os.utime(path, ns=(1, 1))
    elif change == "replace":
        (tmp_path / "y").write_bytes(b"two")
        os.utime(tmp_path / "y", ns=(1, 1))
        os.replace(tmp_path / "y", path)
    elif change == "rewrite":
        path.write_bytes(b"two")
    else:
        path.unlink()
    with pytest.raises(InputError, match="written to while they were read"):
        require_unchanged(before)
