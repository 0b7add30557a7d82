"""GGUF files whose lengths are not true: refused with a sentence, at once."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from qtk.errors import InputError
from qtk.quantization.formats.gguf_checkpoint import GgufCheckpoint

pytest.importorskip("gguf", reason="gguf is not installed")
_BYTES, _ARRAY = 0, 9
ENDLESS = struct.pack("<IQ", _BYTES, 2**60)
DEEP = struct.pack("<IQ", _ARRAY, 1) * 3000 + ENDLESS
VALUES = {"endless": ENDLESS, "deep": DEEP, "cut": b""}


@pytest.mark.parametrize("case", VALUES)
def test_a_length_that_the_file_does_not_have_is_refused(tiny, tmp_path: Path, case: str) -> None:
    shutil.copy(tiny() / "config.json", tmp_path)
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"name" + struct.pack("<I", _ARRAY)
    (tmp_path / "model.gguf").write_bytes(start + VALUES[case])
    with pytest.raises(InputError, match=r"model\.gguf cannot be read as a GGUF file: it (says|is nested)"):
        GgufCheckpoint(tmp_path)
