"""Rewrites the portable graph when it is loaded, for calls of one row: parts of a block become ONNX Runtime's own operators.

The file stays as it is, with standard operators only. In memory, the ten nodes between the q/k/v product and the output of
attention become GroupQueryAttention, which reads the cache up to the row's length and needs no mask. An addition and the norm
after it become SkipSimplifiedLayerNormalization. GroupQueryAttention does not take a prompt in chunks in a batch of several
rows, so such batches run the graph as it is.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from qtk.engines.description import EngineDescription

DOMAIN = "com.microsoft"
# Inputs of the rewritten graph: each row's last position, and the number of positions so far.
LAST_POSITION, POSITIONS = "last_position", "positions"


def rewritten(path: Path, description: EngineDescription) -> bytes | None:
    """The rewritten graph, its weights still in their file beside `path`; None for a graph with other nodes there (Qwen3 has
    norms between the product and the rotation)."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    kept = {node.name: node for node in graph.node}
    swaps: dict[str, onnx.NodeProto] = {}
    for attention in [node for node in graph.node if node.op_type == "Attention"]:
        parts = _attention_parts(attention, producers, graph)
        if parts is None:
            return None
        inside, last = parts
        for node in inside:
            kept.pop(node.name)
        swaps[last.name] = _group_query_attention(inside, last, graph, description)
    for norm in [node for node in graph.node if node.op_type == "RMSNormalization"]:
        add = producers.get(norm.input[0])
        if add is not None and add.op_type == "Add":
            kept.pop(norm.name)
            swaps[add.name] = _added_norm(add, norm)
    nodes = [swaps.get(name, node) for name, node in kept.items()]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    inputs = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.input.append(helper.make_tensor_value_info(LAST_POSITION, TensorProto.INT32, ["batch"]))
    graph.input.append(helper.make_tensor_value_info(POSITIONS, TensorProto.INT32, []))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return bytes(model.SerializeToString())


def _attention_parts(
    attention: onnx.NodeProto, producers: dict[str, onnx.NodeProto], graph: onnx.GraphProto
) -> tuple[list[onnx.NodeProto], onnx.NodeProto] | None:
    """(the nodes from the layout of the heads to the output of attention, in order; the last of them)."""
    inside = [producers[name] for name in attention.input[1:3]] + [attention]
    for kind in ("Split", "RotaryEmbedding", "Split", "Transpose", "Reshape"):
        node = producers.get((attention if kind == "Split" and len(inside) == 3 else inside[0]).input[0])
        if node is None or node.op_type != kind:
            return None
        inside.insert(0, node)
    by_token = next(node for node in graph.node if attention.output[0] in node.input)
    last = next(node for node in graph.node if by_token.output[0] in node.input)
    return [*inside, by_token], last


def _group_query_attention(
    inside: list[onnx.NodeProto], last: onnx.NodeProto, graph: onnx.GraphProto, description: EngineDescription
) -> onnx.NodeProto:
    reshape, _, _, rotation, query_and_key, key, value, attention, _ = inside
    sizes = next(tensor for tensor in graph.initializer if tensor.name == query_and_key.input[1])
    num_heads, num_kv_heads = numpy_helper.to_array(sizes).tolist()
    layer = int(key.output[0].rpartition(".")[2])
    window = description.windows[layer]
    _, cos, sin, _ = rotation.input
    inputs = [reshape.input[0], "", "", key.input[0], value.input[0], LAST_POSITION, POSITIONS, cos, sin]
    return helper.make_node(
        "GroupQueryAttention",
        inputs,
        [last.output[0], key.output[0], value.output[0]],
        name=attention.name,
        domain=DOMAIN,
        num_heads=num_heads,
        kv_num_heads=num_kv_heads,
        do_rotary=1,
        local_window_size=-1 if window is None else window,
    )


def _added_norm(add: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*add.input, norm.input[1]],
        [norm.output[0], "", "", add.output[0]],
        name=norm.name,
        domain=DOMAIN,
        epsilon=epsilon,
    )
