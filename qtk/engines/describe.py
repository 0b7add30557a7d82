"""Fills in engine.json from a build: what every backend that runs the portable graph has in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from qtk.engines.backends import BuildJob
from qtk.engines.description import EngineDescription, Port, Quantization, Stage
from qtk.errors import InputError
from qtk.machine import package_versions
from qtk.models.spec import ModelSpec
from qtk.models.tokenizer import TextTokenizer, configured_eos_ids
from qtk.quantization.model_weights import ModelWeights

_DTYPE_NAMES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


def describe(
    job: BuildJob,
    *,
    backend: str,
    dtype: torch.dtype,
    lm_head_bits: int,
    stages: tuple[Stage, ...],
    packages: tuple[str, ...],
    versions: Mapping[str, str] | None = None,
    **more: Any,
) -> EngineDescription:
    """The description of an engine made of the portable graph. `packages`: whose versions are recorded, beside `versions`
    that are known otherwise."""
    spec: ModelSpec = job.weights.spec
    return EngineDescription(
        architecture=spec.architecture,
        backend=backend,
        gpu=job.gpu.name,
        compute_capability=job.gpu.compute_capability,
        dtype=_DTYPE_NAMES[dtype],
        lm_head_bits=lm_head_bits,
        limits=job.limits,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        windows=spec.windows,
        stop_tokens=_stop_tokens(job.weights.checkpoint.path),
        quantization=_quantization(job.weights),
        stages=stages,
        versions=package_versions("qtk", *packages) | dict(versions or {}),
        **more,
    )


def _stop_tokens(model_dir: Path) -> tuple[int, ...]:
    try:
        return TextTokenizer(model_dir).eos_ids
    except InputError:  # a model without a tokenizer still takes token ids
        return configured_eos_ids(model_dir)


def graph_stage(
    path: Path, layers: tuple[int, int], plan: Path | None = None, cache_length: int | None = None
) -> Stage:
    """The stage that the ONNX file at `path` describes; `plan` is what was compiled from it, where it was, with the cache
    frozen at `cache_length`."""
    graph = onnx.load(path, load_external_data=False).graph
    size = path.stat().st_size + path.with_name(path.name + ".data").stat().st_size
    return Stage(
        file=(plan or path).name,
        layers=layers,
        inputs=tuple(_port(value, cache_length) for value in graph.input),
        outputs=tuple(_port(value, cache_length) for value in graph.output),
        bytes=size if plan is None else plan.stat().st_size,
    )


def _port(value: onnx.ValueInfoProto, cache_length: int | None) -> Port:
    tensor = value.type.tensor_type
    names = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    shape = tuple(cache_length if name == "cache" and cache_length else name for name in names)
    return Port(name=value.name, dtype=_TYPE_NAMES[tensor.elem_type], shape=shape)


def _quantization(weights: ModelWeights) -> Quantization | None:
    if not weights.quantized:
        return None
    default = weights.scheme.default
    return Quantization(
        bits=default.bits,
        group_size=default.group_size,
        symmetric=default.symmetric,
        method=weights.method,
        overridden_linears=len(weights.scheme.overrides()),
    )
