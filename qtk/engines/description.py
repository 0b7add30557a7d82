"""engine.json: everything that a reader of an engine directory needs to know, its memory table included."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtk.errors import InputError

ENGINE_NAME = "engine.json"
_CACHE_STEP = 128


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class EngineLimits(_Frozen):
    """The largest call that an engine takes. `max_positions` bounds prompt and output together, in tokens."""

    max_batch: int
    max_input_len: int
    max_output_len: int
    max_positions: int

    @property
    def cache_slots(self) -> int:
        """The cache slots of each row that a plan freezes for this many positions: the next multiple of 128."""
        return -(-self.max_positions // _CACHE_STEP) * _CACHE_STEP


class Port(_Frozen):
    """One input or output of the graph. A dimension is a number, or a name where the size depends on the call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Stage(_Frozen):
    """One graph or plan: `file` in the engine directory, which holds blocks first .. last - 1 in `bytes` bytes."""

    file: str
    layers: tuple[int, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    bytes: int


class Quantization(_Frozen):
    """How the checkpoint's linears were stored, those with settings of their own left aside."""

    bits: int
    group_size: int
    symmetric: bool
    method: str


class MemoryPart(_Frozen):
    """One line of the memory table."""

    name: str
    bytes: int
    how: str


class MemoryTable(_Frozen):
    """What an engine takes of its GPU's memory, part by part, and the bound that the GPU's bandwidth sets to its speed.

    The bound is in tokens per second for each row, and None without a bandwidth (the cpu profile); bound_of says what is
    read for a token.
    """

    gpu: str
    available_bytes: int | None
    parts: list[MemoryPart]
    needed_bytes: int
    fits: bool
    decode_bound_tokens_per_s: float | None
    bound_of: str


class EngineDescription(_Frozen):
    """The content of engine.json.

    accuracy_level is ONNX Runtime's for INT4 products: 0 computes in the graph's dtype, 4 rounds activations to 8 bits.
    lm_head_bits is 16 where the head stays in the graph's dtype. cache_length is set where a plan froze it. own_gpu: the
    content of the GPU's profile where it is not one that ships. memory: the memory table of an engine on one GPU.
    """

    format: Literal["qtk-engine"] = "qtk-engine"
    format_version: Literal[1] = 1
    architecture: str
    backend: str
    gpu: str
    compute_capability: str | None = None
    own_gpu: dict[str, Any] | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    accuracy_level: int | None = None
    lm_head_bits: int
    limits: EngineLimits
    cache_length: int | None = None
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    stop_tokens: tuple[int, ...]
    quantization: Quantization | None = None
    stages: tuple[Stage, ...]
    versions: dict[str, str] = Field(default_factory=dict)
    built: bool = True
    notes: tuple[str, ...] = ()
    memory: MemoryTable | None = None

    def save(self, directory: Path) -> None:
        (directory / ENGINE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def finishing_command(prepared: Path | str) -> str:
    """The command that turns a prepared directory into an engine, on a machine that has what the build needs."""
    return shlex.join(["qtk", "build-engine", str(prepared), "-o", f"{prepared}-built"])


def is_engine(directory: Path) -> bool:
    """Whether the directory holds an engine.json."""
    return (directory / ENGINE_NAME).is_file()


def read_description(directory: Path) -> EngineDescription:
    """The engine.json of a directory. InputError for a directory that is not an engine, or was written by another version."""
    path = directory / ENGINE_NAME
    try:
        content = path.read_bytes()
    except OSError:
        why = "is not an engine directory: engine.json is missing" if directory.is_dir() else "is not a directory"
        raise InputError(f"{directory} {why}. `qtk build-engine MODEL -o ENGINE --gpu cpu` makes one.") from None
    try:
        description = EngineDescription.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path} cannot be read as an engine description: {error}") from None
    missing = [stage.file for stage in description.stages if not (directory / stage.file).is_file()]
    if missing and description.built:
        raise InputError(f"{directory} is incomplete: {', '.join(missing)} is missing. Build the engine again.")
    return description
