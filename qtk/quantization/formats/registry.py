"""The containers by name. Adding a container: a file, and a line here."""

from __future__ import annotations

from qtk.errors import InputError
from qtk.quantization.formats.awq import AwqFormat
from qtk.quantization.formats.base import Format
from qtk.quantization.formats.compressed_tensors import CompressedTensorsFormat
from qtk.quantization.formats.gguf import GgufFormat
from qtk.quantization.formats.gptq import GptqFormat
from qtk.quantization.formats.modelopt import ModelOptFormat

FORMATS: dict[str, Format] = {
    f.name: f for f in (GptqFormat(), AwqFormat(), ModelOptFormat(), CompressedTensorsFormat(), GgufFormat())
}


def checkpoint_format(name: str) -> Format:
    """The container called `name`; InputError lists the known ones."""
    if name not in FORMATS:
        raise InputError(f"Container {name!r} is not known; qtk writes {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of(quant_method: str) -> Format | None:
    """The container that config.json's quant_method names, or None. Where several share a quant_method, the first reads it."""
    return next((f for f in FORMATS.values() if f.quant_method == quant_method), None)
