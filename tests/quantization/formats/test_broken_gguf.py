"""GGUF files whose lengths are not true: refused with a sentence, at once."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from qtk.errors import InputError
from qtk.quantization.formats import gguf_file
from qtk.quantization.formats.gguf import gguf_faults
from qtk.quantization.formats.gguf_checkpoint import GgufCheckpoint
from qtk.quantization.model_weights import ModelWeights
from qtk.recipes.demo_model import unpack_gguf

pytest.importorskip("gguf", reason="gguf is not installed")
_BYTES, _ARRAY = 0, 9
ENDLESS = struct.pack("<IQ", _BYTES, 2**60)
DEEP = struct.pack("<IQ", _ARRAY, 1) * 3000 + ENDLESS
VALUES = {"endless": ENDLESS, "deep": DEEP, "cut": b""}


def _checkpoint(file: Path) -> None:
    GgufCheckpoint(file.parent)


def _unpacked(file: Path) -> None:
    unpack_gguf(file, file.parent / "out", "owner/tiny")


def _compared(file: Path) -> None:
    (fault,) = gguf_faults(ModelWeights.open(file.parent), file)
    raise InputError(fault)


@pytest.mark.parametrize("read", [_checkpoint, _unpacked, _compared])
@pytest.mark.parametrize("case", VALUES)
def test_a_length_that_the_file_does_not_have_is_refused(
    tiny, tmp_path: Path, case: str, read: Callable[[Path], None]
) -> None:
    for file in tiny().iterdir():
        if read is _compared or file.name == "config.json":
            shutil.copy(file, tmp_path)
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"name" + struct.pack("<I", _ARRAY)
    (tmp_path / "model.gguf").write_bytes(start + VALUES[case])
    with pytest.raises(InputError, match=r"model\.gguf cannot be read as a GGUF file: it (says|is nested)"):
        read(tmp_path / "model.gguf")
    assert not (tmp_path / "out").exists()


def test_every_gguf_is_read_through_the_boundary() -> None:
    sources = Path(gguf_file.__file__).parents[2]
    assert [path.name for path in sources.rglob("*.py") if "GGUFReader(" in path.read_text()] == []
    assert "gguf.GGUFReader)" in Path(gguf_file.__file__).read_text()
