"""`qtk plan`: whether an engine would fit its GPU and how fast it could be, from config.json alone, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from qtk.engines.description import Limits
from qtk.engines.edgellm import backend as tensorrt_edgellm_backend
from qtk.engines.linear_plans import linear_plans
from qtk.engines.memory_plan import cache_length, memory_plan
from qtk.engines.memory_table import MemoryPlan
from qtk.engines.options import BuildOptions, not_for, resolved_limits
from qtk.engines.tensorrt_llm import backend as tensorrt_llm_backend
from qtk.engines.tensorrt_llm.checkpoint import Split
from qtk.errors import InputError
from qtk.models.registry import spec_from_config
from qtk.models.spec import ModelSpec
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme, float_scheme
from qtk.targets.gpu import GpuProfile, gpu_profile
from qtk.targets.table import refusals, target


class PlanOptions(BuildOptions):
    """The options of the engine that is planned, and how its weights will be stored."""

    bits: Literal["auto", "4", "16"] = Field(
        "auto", description="Width of the linears' weights. auto is what the model directory holds now."
    )
    group_size: int = Field(128, ge=1, description="Group size that goes with --bits 4.")
    symmetric: bool = Field(True, description="Symmetric groups, that go with --bits 4.")


class EnginePlan(BaseModel):
    """The memory table, and every reason why the engine cannot be as asked."""

    model: str
    parameters: int
    weights: str
    memory: MemoryPlan
    refusals: list[str]


def plan_engine(model_dir: Path | str, options: PlanOptions) -> EnginePlan:
    """Plans the engine of a model directory; config.json is enough. InputError for options that no engine can have."""
    model_dir = Path(model_dir)
    gpu = gpu_profile(options.gpu)
    spec, scheme = _read(model_dir, options)
    limits = resolved_limits(options, spec, gpu)
    memory = memory_plan(spec, scheme, limits, gpu, cache_length(limits.max_positions))
    kinds = sorted({(linear.bits, linear.group_size) for linear in scheme.quantized_modules().values()})
    return EnginePlan(
        model=model_dir.name,
        parameters=spec.parameters(),
        weights=", ".join(f"INT{bits} group {group}" for bits, group in kinds) or "float16",
        memory=memory,
        refusals=memory.refusals(options.tp * options.pp)[:1] + _backend_refusals(options, gpu, spec, scheme, limits),
    )


def _backend_refusals(
    options: PlanOptions,
    gpu: GpuProfile,
    spec: ModelSpec,
    scheme: QuantizationScheme,
    limits: Limits,
) -> list[str]:
    """Why the default backend would not take the model as it is stored, scales' signs aside."""
    name = gpu.default_backend if options.backend == "auto" else options.backend
    if name not in gpu.backends:
        return [not_for(name, gpu)]
    reasons = _model_refusals(name, options, spec, limits)
    plans = linear_plans(spec, scheme)
    return reasons + (refusals(target(name), gpu.sm, plans, tensor_parallel=options.tp) if plans else [])


def _model_refusals(name: str, options: PlanOptions, spec: ModelSpec, limits: Limits) -> list[str]:
    """What the backends with runtimes of their own cannot take of a model's make."""
    if name == "tensorrt-llm":
        return tensorrt_llm_backend.model_refusals(spec, limits, Split(options.tp, options.pp))
    one_device = [f"--tp and --pp are for --backend tensorrt-llm; a {name} engine runs on one device"]
    reasons = one_device if options.tp * options.pp > 1 else []
    return reasons + (tensorrt_edgellm_backend.model_refusals(spec, limits) if name == "tensorrt-edgellm" else [])


def _read(model_dir: Path, options: PlanOptions) -> tuple[ModelSpec, QuantizationScheme]:
    if options.bits == "auto" and any(model_dir.glob("*.safetensors")):
        weights = ModelWeights.open(model_dir)
        return weights.spec, weights.scheme
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    spec = spec_from_config(config, str(path))
    return spec, _uniform(spec, options) if options.bits == "4" else float_scheme(spec)


def _uniform(spec: ModelSpec, options: PlanOptions) -> QuantizationScheme:
    odd = sorted({linear.in_features for linear in spec.linears() if linear.in_features % options.group_size})
    if odd:
        raise InputError(f"--group-size {options.group_size} does not divide the input sizes {odd} of this model.")
    scheme = LinearScheme(4, options.group_size, options.symmetric)
    return QuantizationScheme(scheme, {name: scheme for name, _ in spec.all_linears()})
