"""What an engine is built for: the options of `qtk build-engine` and `qtk plan`, of a recipe's engine stage, and of manifests.
Light to import: the command line reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.engines.description import EngineLimits
from qtk.errors import InputError
from qtk.targets.gpu import GpuProfile
from qtk.targets.refusals import refusals
from qtk.targets.runtimes import engine_runtimes, runtime

if TYPE_CHECKING:
    from qtk.models.spec import ModelSpec

_EXPERIMENTAL = ", ".join(name for name, parts in engine_runtimes().items() if parts.experimental)
_SEVERAL_GPUS = ", ".join(name for name, parts in engine_runtimes().items() if parts.several_gpus)


class BuildOptions(BaseModel):
    """Options of an engine build. Lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gpu: str = Field(
        "cpu",
        description="What the engine runs on: a name from `qtk gpus`, cpu, or the YAML file of a profile.",
        json_schema_extra={"names": "gpus"},
    )
    backend: str = Field(
        "auto",
        description=f"Runtime that runs the engine: {', '.join(engine_runtimes())}, or auto (the first that is listed for the "
        f"GPU: `qtk gpus`). Experimental, not run on a GPU here: {_EXPERIMENTAL}.",
        json_schema_extra={"names": "backends", "also": ["auto"]},
    )
    max_input_len: int | None = Field(
        None, ge=1, le=1_048_576, description="Longest prompt. Default 1024, less where the model's context is short."
    )
    max_output_len: int | None = Field(
        None, ge=1, le=1_048_576, description="Most new tokens. Default 512, less where the model's context is short."
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=10_000_000, description="Most rows at once. Default 8 on cpu, 1 on a GPU."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Type that the engine computes in. auto is float32 on cpu, where it is fastest, and float16 on a GPU. "
        "bfloat16 is for TensorRT and models whose values float16 does not hold.",
    )
    accuracy_level: int = Field(
        4,
        ge=0,
        le=4,
        description="ONNX Runtime's INT4 products: 4 rounds activations to 8 bits and is fastest; 0 computes exactly, to "
        "verify with.",
    )
    lm_head_bits: Literal["auto", "8", "16"] = Field(
        "auto", description="8 rounds the output head to 8 bits. auto is 8 on cpu for INT4 models at accuracy level 4."
    )
    tp: int = Field(1, ge=1, description=f"GPUs that share each layer (tensor-parallel ranks; {_SEVERAL_GPUS} only).")
    pp: int = Field(
        1, ge=1, description=f"GPUs that share the layers (pipeline-parallel stages; {_SEVERAL_GPUS} only)."
    )
    edgellm_bin: Path | None = Field(
        None,
        description="Directory of tensorrt-edgellm-export, which has an environment of its own. Default: PATH, then the "
        "environment of `make edgellm`.",
    )
    prepare_only: bool = Field(
        False, description="Write everything but the plan, and print the command that builds it."
    )

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, name: str) -> str:
        if name != "auto" and name not in engine_runtimes():
            raise ValueError(f"{name!r} is not a backend; qtk has auto, {', '.join(engine_runtimes())}")
        return name


class PlanOptions(BuildOptions):
    """The options of the engine that is planned, and how its weights will be stored: named as in `qtk quantize`."""

    bits: int | Literal["auto"] = Field(
        "auto", description="Bits of a weight: 4, 8, 16, or auto (as the model directory holds the weights now)."
    )
    group_size: int | Literal["auto"] = Field(
        "auto",
        description="Input columns that share a scale, with --bits 4 or 8: a number, or auto (the largest that the backend "
        "takes and that divides every layer).",
        json_schema_extra={"names": "group-sizes"},
    )
    sym: bool = Field(
        True,
        description="Symmetric codes (zero point in the middle), or asymmetric, with --bits 4 or 8.",
        json_schema_extra={"off": "asym", "was": "symmetric"},
    )

    @field_validator("bits", "group_size", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("bits")
    @classmethod
    def _known_bits(cls, bits: int | str) -> int | str:
        if bits not in ("auto", 4, 8, 16):
            raise ValueError(f"{bits} bits are not supported; 4, 8, 16 and auto are")
        return bits

    @field_validator("group_size")
    @classmethod
    def _known_group(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise ValueError(f"group size {size} is not a positive number")
        return size


def chosen_backend(options: BuildOptions, gpu: GpuProfile) -> str:
    """The backend that the options name, or the GPU's first."""
    return gpu.default_backend if options.backend == "auto" else options.backend


def not_for(backend: str, gpu: GpuProfile) -> str:
    """Why a backend does not build for a GPU that it does not run on: by its record, and with the GPU's own advice."""
    why = refusals(runtime(backend), gpu.sm, {})[:1]
    others = (
        f"what does: {', '.join(gpu.backends)}" if gpu.backends else "qtk builds engines for it with no other either"
    )
    sentences = [f"Backend {backend} does not build for {gpu.name}", *why, others]
    return f"{'; '.join(sentences)}. {gpu.advice}".strip()


def resolved_limits(options: BuildOptions, spec: ModelSpec, gpu: GpuProfile) -> EngineLimits:
    """The options' limits with defaults filled in. InputError when they exceed the model's context."""
    context = spec.max_positions
    output_len = options.max_output_len
    if output_len is None:
        rest = context // 3 if options.max_input_len is None else context - options.max_input_len
        output_len = min(512, max(1, rest))
    input_len = options.max_input_len
    if input_len is None:
        input_len = min(1024, max(1, context - output_len))
    if input_len + output_len > context:
        raise InputError(
            f"--max-input-len {input_len} and --max-output-len {output_len} make {input_len + output_len} tokens; the "
            f"model's context is {context} (max_position_embeddings in config.json)."
        )
    return EngineLimits(
        max_batch=options.max_batch_size or (8 if gpu.is_cpu else 1),
        max_input_len=input_len,
        max_output_len=output_len,
        max_positions=input_len + output_len,
    )
