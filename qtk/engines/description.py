"""engine.json: what an engine is, so that whoever opens the directory needs nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtk.engines.memory_table import MemoryPlan
from qtk.errors import InputError

ENGINE_NAME = "engine.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Limits(_Frozen):
    """How much one call may ask for. `max_positions` bounds prompt and output together, in tokens."""

    max_batch: int
    max_input_len: int
    max_output_len: int
    max_positions: int


class Port(_Frozen):
    """One input or output of the graph. A dimension is a number, or a name where the call decides it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Stage(_Frozen):
    """One graph or plan: `file` in the engine directory holding blocks first .. last - 1, and the memory it needs."""

    file: str
    layers: tuple[int, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    bytes: int


class Quantization(_Frozen):
    """How the checkpoint's linears were stored; `bits` and `group_size` are the default, overrides are counted."""

    bits: int
    group_size: int
    symmetric: bool
    method: str
    overridden_linears: int = 0


class EngineDescription(_Frozen):
    """The content of engine.json.

    accuracy_level is ONNX Runtime's for INT4 products: 0 computes in the graph's dtype, 4 rounds activations to 8 bits.
    lm_head_bits is 16 where the head stays in the graph's dtype. cache_length is set where a plan froze it. memory: what
    the engine takes on its one GPU by the table, and the bound on its speed.
    """

    format: Literal["qtk-engine"] = "qtk-engine"
    format_version: Literal[1] = 1
    architecture: str
    backend: str
    gpu: str
    compute_capability: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    accuracy_level: int | None = None
    lm_head_bits: int
    limits: Limits
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
    memory: MemoryPlan | None = None

    def save(self, directory: Path) -> None:
        (directory / ENGINE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def finishing_command(prepared: Path | str) -> str:
    """The command that makes an engine of a prepared directory, on a machine that has what the build needs."""
    return shlex.join(["qtk", "build-engine", str(prepared), "-o", f"{prepared}-built"])


def is_engine(directory: Path) -> bool:
    """Whether the directory says it is an engine."""
    return (directory / ENGINE_NAME).is_file()


def read_description(directory: Path) -> EngineDescription:
    """The engine.json of a directory. InputError for a directory that is no engine, or one written by another version."""
    path = directory / ENGINE_NAME
    try:
        content = path.read_bytes()
    except OSError:
        kind = "is no engine directory (it has no engine.json)" if directory.is_dir() else "is not a directory"
        raise InputError(f"{directory} {kind}. `qtk build-engine MODEL -o ENGINE --gpu cpu` makes one.") from None
    try:
        description = EngineDescription.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path} cannot be read as an engine description: {error}") from None
    missing = [stage.file for stage in description.stages if not (directory / stage.file).is_file()]
    if missing and description.built:
        raise InputError(f"{directory} is incomplete: {', '.join(missing)} is missing. Build the engine again.")
    return description
