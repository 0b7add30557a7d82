"""Digests of bytes as they pass."""

from __future__ import annotations

import os

from qtk.checkpoint.manifest import file_digest
from qtk.checkpoint.passing_digest import PassingDigest


def test_what_is_shown_is_not_read_and_the_rest_is(tmp_path) -> None:
    path = tmp_path / "file"
    data = os.urandom(1000)
    path.write_bytes(data)
    passing = PassingDigest(path)
    passing.show(100, memoryview(data)[100:300])
    passing.show(50, memoryview(data)[50:60])  # too late: it was read on the way to byte 100
    passing.show(300, memoryview(data)[300:900])
    assert passing.finish() == file_digest(path)
    assert passing.bytes_read == 200
