"""What engine.json says of a graph, read from its ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx

from qtk.engines.description import Port, Stage

_TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


def graph_stage(
    path: Path, layers: tuple[int, int], plan: Path | None = None, cache_length: int | None = None
) -> Stage:
    """The stage that the ONNX file at `path` describes. plan: what was compiled from the file, if anything was, with the
    cache frozen at `cache_length`."""
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
