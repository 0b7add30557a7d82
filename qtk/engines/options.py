"""What an engine is built for: the options of `qtk build-engine`, of a recipe's engine stage, and of its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.engines.description import Limits
from qtk.errors import InputError
from qtk.models.spec import ModelSpec
from qtk.targets.gpu import GpuProfile
from qtk.targets.table import TARGETS, refusals, target

BackendName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-full", "tensorrt-edgellm", "tensorrt-llm"]


class BuildOptions(BaseModel):
    """Options of an engine build. Lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str = Field("cpu", description="What the engine runs on: a name from `qtk gpus`, or cpu.")
    backend: BackendName = Field("auto", description="auto is onnxruntime for cpu and tensorrt for a GPU.")
    max_input_len: int | None = Field(
        None, ge=1, description="Longest prompt. Default 1024, less where the model's context is short."
    )
    max_output_len: int | None = Field(
        None, ge=1, description="Most new tokens. Default 512, less where the model's context is short."
    )
    max_batch_size: int | None = Field(None, ge=1, description="Most rows at once. Default 8 on cpu, 1 on a GPU.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="What the graph computes in. auto is float32 on cpu, where it is fastest, float16 on a GPU; bfloat16 is "
        "for TensorRT and models whose values float16 does not hold.",
    )
    accuracy_level: int = Field(
        4,
        ge=0,
        le=4,
        description="ONNX Runtime's INT4 products: 4 rounds activations to 8 bits and is fastest, 0 to verify with.",
    )
    lm_head_bits: Literal["auto", "8", "16"] = Field(
        "auto", description="8 rounds the output head to 8 bits. auto is 8 on cpu for INT4 models at accuracy level 4."
    )
    tp: int = Field(1, ge=1, description="GPUs that share each layer (tensor-parallel ranks; tensorrt-llm only).")
    pp: int = Field(1, ge=1, description="GPUs that share the layers (pipeline-parallel stages; tensorrt-llm only).")
    edgellm_bin: Path | None = Field(
        None,
        description="Directory of tensorrt-edgellm-export, which has an environment of its own. Default: PATH, then what "
        "`make edgellm` made.",
    )
    prepare_only: bool = Field(False, description="Write everything but the plan, and say which command builds it.")


def not_for(backend: str, gpu: GpuProfile) -> str:
    """Why a backend that the profile does not list builds nothing for the GPU: by the target table, or the profile's words."""
    why = refusals(target(backend), gpu.sm, {}) if gpu.sm is not None and backend in TARGETS else []
    said = [f"Backend {backend} does not build for {gpu.name}", *why[:1], f"what does: {', '.join(gpu.backends)}"]
    return f"{'; '.join(said)}. {gpu.advice}".strip()


def resolved_limits(options: BuildOptions, spec: ModelSpec, gpu: GpuProfile) -> Limits:
    """The options' limits with defaults filled in. InputError when they exceed the model's context."""
    context = spec.max_positions
    output = options.max_output_len
    if output is None:
        output = min(512, max(1, context // 3 if options.max_input_len is None else context - options.max_input_len))
    entry = min(1024, max(1, context - output)) if options.max_input_len is None else options.max_input_len
    if entry + output > context:
        raise InputError(
            f"--max-input-len {entry} and --max-output-len {output} make {entry + output} tokens; the model's context "
            f"is {context} (max_position_embeddings in config.json)."
        )
    return Limits(
        max_batch=options.max_batch_size or (8 if gpu.is_cpu else 1),
        max_input_len=entry,
        max_output_len=output,
        max_positions=entry + output,
    )
