"""engine.json: everything that a reader of an engine directory needs to know, its memory table included."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qtk.bounded.files import require_inside
from qtk.bounded.parsing import read_model
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest, read_manifest
from qtk.errors import InputError

ENGINE_NAME = "engine.json"
_CACHE_STEP = 128


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


# Beyond every engine, and small enough that a wrong number in a file takes no memory.
Size = Annotated[int, Field(gt=0, le=10_000_000)]
Layers = Annotated[int, Field(gt=0, le=10_000)]


class EngineLimits(_Frozen):
    """The largest call that an engine takes. `max_positions` bounds prompt and output together, in tokens."""

    max_batch: Size
    max_input_len: Size
    max_output_len: Size
    max_positions: Size

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
    cache_length: Size | None = None
    vocab_size: Size
    hidden_size: Size
    num_layers: Layers
    num_kv_heads: Size
    head_dim: Size
    windows: tuple[Size | None, ...]
    stop_tokens: tuple[int, ...]
    quantization: Quantization | None = None
    stages: tuple[Stage, ...]
    versions: dict[str, str] = Field(default_factory=dict)
    built: bool = True
    notes: tuple[str, ...] = ()
    memory: MemoryTable | None = None

    @model_validator(mode="after")
    def _of_one_model(self) -> EngineDescription:
        if len(self.windows) != self.num_layers:
            raise ValueError(f"windows are given for {len(self.windows)} of {self.num_layers} layers")
        if self.built and not self.stages:
            raise ValueError("a built engine has a stage at least")
        return self

    def save(self, directory: Path) -> None:
        (directory / ENGINE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def finishing_command(prepared: Path | str) -> str:
    """The command that turns a prepared directory into an engine, on a machine that has what the build needs."""
    return shlex.join(["qtk", "build-engine", str(prepared), "-o", f"{prepared}-built"])


def is_engine(directory: Path) -> bool:
    """Whether the directory holds an engine.json."""
    return (directory / ENGINE_NAME).is_file()


def read_description(directory: Path) -> EngineDescription:
    """The engine.json of a directory. InputError for a directory that is not an engine, for an engine.json that another version
    wrote or that was edited since, and for stages that are missing or lie elsewhere."""
    path = directory / ENGINE_NAME
    try:
        description = read_model(path, EngineDescription, "cannot be read as an engine description")
    except FileNotFoundError:
        why = "is not an engine directory: engine.json is missing" if directory.is_dir() else "is not a directory"
        raise InputError(f"{directory} {why}. `qtk build-engine MODEL -o ENGINE --gpu cpu` makes one.") from None
    for stage in description.stages:
        require_inside(directory, stage.file, path)
    _require_as_built(directory)
    missing = [stage.file for stage in description.stages if not (directory / stage.file).is_file()]
    if missing and description.built:
        raise InputError(f"{directory} is incomplete: {', '.join(missing)} is missing. Build the engine again.")
    return description


def _require_as_built(directory: Path) -> None:
    """InputError where engine.json is not the one that the engine's manifest records. A directory without a manifest is still being
    built, or was put together by hand."""
    if not (directory / MANIFEST_NAME).is_file():
        return
    recorded = read_manifest(directory).outputs.get(ENGINE_NAME)
    if recorded is not None and file_digest(directory / ENGINE_NAME).sha256 != recorded.sha256:
        raise InputError(
            f"{directory / ENGINE_NAME} was changed since the engine was built, so it may describe another engine. "
            f"Build the engine again; `qtk verify {directory}` lists every change."
        )
