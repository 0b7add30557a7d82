"""Compares the output of NVIDIA's exporter with our own weights: every linear, every attention node, the rope and the sizes.

The codes are compared one by one: the layout of Int4GroupwiseGemmPluginV2 is that of tensorrt-edgellm 0.11
(checkpoint/repacking.py there), tiles of 128 outputs and 64 inputs in the order in which the kernel's threads read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from qtk.engines.edgellm.tools import EXPORT
from qtk.errors import MachineError, listing
from qtk.models.rope import RopeSettings
from qtk.models.spec import Linear, ModelSpec
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear

GEMM, ATTENTION = "Int4GroupwiseGemmPluginV2", "AttentionPlugin"
_TILE = (128, 64)


def check_export(path: Path, weights: ModelWeights) -> None:
    """Checks that NVIDIA's loader read every linear as we mean it (one INT4 plugin node each, with our sizes, group, scales
    and codes), and the model's heads, cache, rope and sizes.

    path: the graph, beside its config.json. MachineError, with every difference.
    """
    model = onnx.load(path)
    differences = _linears(model.graph, weights) + _attention(model.graph, weights.spec)
    differences += _config(path.with_name("config.json"), weights.spec)
    if differences:
        raise MachineError(f"{EXPORT} wrote another model than it was given:\n{listing(differences)}")


def _linears(graph: onnx.GraphProto, weights: ModelWeights) -> list[str]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.input[1].rpartition(".")[0]: node for node in graph.node if node.op_type == GEMM}
    differences = []
    for module, linear in weights.spec.all_linears():
        key = next((name for name in nodes if name == module or name.endswith(f".{module}")), None)
        if key is None:
            differences.append(f"{module}: no {GEMM} node")
            continue
        node = nodes.pop(key)
        packed, scales = (torch.from_numpy(numpy_helper.to_array(stored[name]).copy()) for name in node.input[1:3])
        differences += [
            f"{module}: {difference}" for difference in _linear(node, packed, scales, linear, weights.linear(module))
        ]
    return differences + [f"{name}: an INT4 node that does not belong to a linear" for name in nodes]


def _linear(
    node: onnx.NodeProto,
    packed: torch.Tensor,
    scales: torch.Tensor,
    linear: Linear,
    weight: QuantizedLinear | torch.Tensor,
) -> list[str]:
    """The differences in one linear."""
    assert isinstance(weight, QuantizedLinear)
    attributes, differences = _attributes(node), []
    if (attributes.get("gemm_n"), attributes.get("gemm_k")) != (linear.out_features, linear.in_features):
        differences.append(f"sizes {attributes.get('gemm_n')} x {attributes.get('gemm_k')}")
    if attributes.get("group_size") != weight.group_size:
        differences.append(f"group {attributes.get('group_size')}, not {weight.group_size}")
    if not torch.equal(scales, weight.scales.to(torch.float16).t()):
        differences.append("other scales")
    if not torch.equal(packed.contiguous().view(torch.uint8).flatten(), fragment_order(weight.codes).flatten()):
        differences.append("other codes")
    return differences


def fragment_order(codes: torch.Tensor) -> torch.Tensor:
    """Codes [out, in] uint8 0..15, 8 meaning 0 -> bytes uint8 in the kernel's order, padded with 8 to whole tiles.

    Tile by tile (outputs, then inputs), 4 blocks of 16 inputs, 2 halves of 64 outputs, 32 outputs, 4 pairs of inputs: eight
    codes to a word of 32 bits, lowest first: of input 0, 8 (output 0), 0, 8 (output 32), then the same of input 1.
    """
    outputs, inputs = (-(-size // step) for size, step in zip(codes.shape, _TILE, strict=True))
    padded = torch.full((outputs * _TILE[0], inputs * _TILE[1]), 8, dtype=torch.uint8)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    # outputs: tile, half, upper 32, one of 32; inputs: tile, block of 16, upper 8, pair, one of two
    split = padded.view(outputs, 2, 2, 32, inputs, 4, 2, 4, 2)
    ordered = split.permute(0, 4, 5, 1, 3, 7, 8, 2, 6).reshape(-1, 2)
    return ordered[:, 0] | (ordered[:, 1] << 4)


def _attention(graph: onnx.GraphProto, spec: ModelSpec) -> list[str]:
    nodes = [node for node in graph.node if node.op_type == ATTENTION]
    differences = (
        [] if len(nodes) == spec.num_layers else [f"{len(nodes)} attention nodes for {spec.num_layers} layers"]
    )
    heads = {"num_q_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads, "head_size": spec.head_dim}
    expected = {**heads, "enable_fp8_kv_cache": 0, "sliding_window_size": -1}
    for number, node in enumerate(nodes):
        attributes = _attributes(node)
        differences += [
            f"attention node {number}: {name} {attributes.get(name)}, not {value}"
            for name, value in expected.items()
            if attributes.get(name) != value
        ]
    caches = [value for value in graph.input if value.name.startswith("past_key_values_")]
    for value in caches:
        tensor = value.type.tensor_type
        shape = [dimension.dim_value for dimension in tensor.shape.dim]
        if tensor.elem_type != onnx.TensorProto.FLOAT16 or shape[-2:] != [spec.num_kv_heads, spec.head_dim]:
            differences.append(
                f"{value.name}: {onnx.TensorProto.DataType.Name(tensor.elem_type)} {shape}, not float16 by heads"
            )
    if len(caches) != spec.num_layers:
        differences.append(f"{len(caches)} caches for {spec.num_layers} layers")
    return differences


def _config(path: Path, spec: ModelSpec) -> list[str]:
    """The differences in the file that the runtime reads beside the graph: sizes, and the rope, which is not part of the graph."""
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return [f"{path.name} beside the graph cannot be read: {error}"]
    expected: dict[str, object] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "kv_cache_dtype": "fp16",
    }
    differences = [f"{path.name}: {k} {config.get(k)}, not {v}" for k, v in expected.items() if config.get(k) != v]
    scaling = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")}
    try:
        rope = RopeSettings.from_config({"rope_parameters": scaling}, spec.max_positions)
    except Exception as error:  # whatever the file holds, it is not our rope
        return [*differences, f"{path.name}: rope_scaling {scaling}: {error}"]
    return differences if rope == spec.rope else [*differences, f"{path.name}: rope {scaling}, not {spec.rope}"]


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
