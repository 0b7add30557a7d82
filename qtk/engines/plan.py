"""`qtk plan`: whether an engine fits its GPU and how fast it could be, from config.json alone, before any work."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from qtk.bounded.files import read_bounded
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.json_file import parse_json
from qtk.engines.backends import engine_backend, gpu_refusals
from qtk.engines.description import MemoryTable, is_engine
from qtk.engines.jobs import EngineRequest
from qtk.engines.options import PlanOptions, chosen_backend, not_for, resolved_limits
from qtk.errors import InputError
from qtk.models.registry import spec_from_config
from qtk.models.spec import ModelSpec
from qtk.quantization.formats.gguf_checkpoint import is_gguf_directory
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme, float_scheme
from qtk.targets.gpu import gpu_profile
from qtk.targets.refusals import defaults_for
from qtk.targets.runtimes import runtime


class EnginePlan(BaseModel):
    """The memory table, and every reason why the engine cannot be built. gpus: how many share the model."""

    model: str
    gpu: str
    gpus: int
    backend: str
    parameters: int
    weights: str
    memory: MemoryTable
    refusals: list[str]


def plan_engine(model_dir: Path | str, options: PlanOptions) -> EnginePlan:
    """Plans the engine of a model directory, or of an id of the hub; config.json is enough. InputError for options
    that no engine can have, and for an engine directory, which is built already."""
    model_dir = model_directory(model_dir, "config")
    if is_engine(model_dir):
        raise InputError(
            f"{model_dir} is an engine, and `qtk plan` takes the model that an engine is built from. `qtk inspect "
            f"{model_dir}` shows the engine; its engine.json holds the memory table."
        )
    gpu = gpu_profile(options.gpu)
    name = chosen_backend(options, gpu)
    spec, scheme = _read(model_dir, options, name)
    limits = resolved_limits(options, spec, gpu)
    request = EngineRequest(spec=spec, scheme=scheme, gpu=gpu, limits=limits, options=options)
    return EnginePlan(
        model=model_dir.name,
        gpu=gpu.name,
        gpus=request.gpus,
        backend=name,
        parameters=spec.parameters(),
        weights=_weights(scheme, request.dtype),
        memory=request.memory,
        refusals=gpu_refusals(name, request) + _backend_refusals(name, request),
    )


def _backend_refusals(name: str, request: EngineRequest) -> list[str]:
    """Why the backend would not take the model as config.json tells it."""
    return engine_backend(name).refusals(request) if name in request.gpu.backends else [not_for(name, request.gpu)]


def _weights(scheme: QuantizationScheme, dtype: str) -> str:
    kinds = sorted({(linear.bits, linear.group_size) for linear in scheme.quantized_modules().values()})
    return ", ".join(f"INT{bits} group {group}" for bits, group in kinds) or dtype


def _read(model_dir: Path, options: PlanOptions, backend: str) -> tuple[ModelSpec, QuantizationScheme]:
    """The model, and how its linears are stored: as they are now, or as the options say."""
    if options.bits == "auto" and (any(model_dir.glob("*.safetensors")) or is_gguf_directory(model_dir)):
        weights = ModelWeights.open(model_dir)
        return weights.spec, weights.scheme
    path = model_dir / "config.json"
    config = parse_json(_content(path), path)
    spec = spec_from_config(config, str(path))
    if options.bits in ("auto", 16):
        return spec, float_scheme(spec)
    return spec, _uniform(spec, options, backend)


def _uniform(spec: ModelSpec, options: PlanOptions, backend: str) -> QuantizationScheme:
    """Every linear of the blocks quantized alike, and the head in float, as `qtk quantize` does by default."""
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
    group_size = options.group_size
    if group_size == "auto":
        group_size = defaults_for(runtime(backend), shapes).group_size
    uneven = sorted({inputs for _, inputs in shapes.values() if inputs % group_size})
    if uneven:
        fitting = [size for size in runtime(backend).group_sizes if all(n % size == 0 for _, n in shapes.values())]
        advice = f"--group-size {max(fitting)} divides them all" if fitting else f"no group that {backend} takes does"
        sizes = ", ".join(map(str, uneven))
        raise InputError(f"--group-size {group_size} does not divide every layer's inputs ({sizes}); {advice}.")
    stored = LinearScheme(int(options.bits), group_size, options.sym)
    return QuantizationScheme(stored, {**float_scheme(spec).modules, **dict.fromkeys(shapes, stored)})


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path)
    except FileNotFoundError:
        raise InputError(f"{path} cannot be read: there is no such file.") from None
