"""Where config.json and the tensors beside it say different things of a model's sizes. Reads headers, not weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.safetensors_file import TensorInfo
from qtk.models.spec import EMBEDDING, FINAL_NORM, LM_HEAD_MODULE, ModelSpec

_IN_BLOCK = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(\w+)$")
_LAYERS, _HIDDEN, _MIDDLE, _VOCABULARY = "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"
_QUERIES, _KEYS, _HEAD = "num_attention_heads x head_dim", "num_key_value_heads x head_dim", "head_dim"
# Module -> the figures that its outputs and its inputs are.
_LINEARS = {
    "self_attn.q_proj": (_QUERIES, _HIDDEN),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.v_proj": (_KEYS, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _QUERIES),
    "mlp.gate_proj": (_MIDDLE, _HIDDEN),
    "mlp.up_proj": (_MIDDLE, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _MIDDLE),
}
_NORMS = {
    "input_layernorm": _HIDDEN,
    "post_attention_layernorm": _HIDDEN,
    "self_attn.q_norm": _HEAD,
    "self_attn.k_norm": _HEAD,
}
# The last part of a name -> the dimension that counts the outputs of a quantized linear, in the containers that qtk reads.
_OUTPUTS = {"bias": 0, "scales": -1, "weight_scale": 0, "blocks": 0}


def contradictions(checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    """A sentence for each figure of config.json that the shapes or the names of the tensors decide otherwise."""
    stored: dict[str, set[int]] = defaultdict(set)
    for name in checkpoint.names:
        for figure, size in _figures(name, checkpoint.info(name)):
            stored[figure].add(size)
    blocks = {int(match[1]) for name in checkpoint.names if (match := _IN_BLOCK.match(name))}
    stored[_LAYERS] = {max(blocks, default=-1) + 1}
    stated = {
        _LAYERS: spec.num_layers,
        _HIDDEN: spec.hidden_size,
        _MIDDLE: spec.intermediate_size,
        _VOCABULARY: spec.vocab_size,
        _QUERIES: spec.num_heads * spec.head_dim,
        _KEYS: spec.num_kv_heads * spec.head_dim,
        _HEAD: spec.head_dim,
    }
    found = [
        f"{figure}: config.json says {number}, the tensors {' and '.join(map(str, sorted(stored[figure])))}"
        for figure, number in stated.items()
        if stored[figure] - {number}
    ]
    if gaps := sorted(set(range(max(blocks, default=-1) + 1)) - blocks):
        found.append(f"{_LAYERS}: of block {gaps[0]} no tensor is stored, though of later ones")
    if not spec.tie_word_embeddings and not any(name.startswith(f"{LM_HEAD_MODULE}.") for name in checkpoint.names):
        found.append("tie_word_embeddings: config.json says false, and no lm_head is stored")
    return found


def _figures(name: str, info: TensorInfo) -> Iterator[tuple[str, int]]:
    """What the shape of one tensor says of the model: (figure, size)."""
    if (within := _IN_BLOCK.match(name)) is not None:
        module, part = within[2], within[3]
    else:
        module, _, part = name.rpartition(".")
    ends = {**_LINEARS, LM_HEAD_MODULE: (_VOCABULARY, _HIDDEN)}.get(module)
    if name == EMBEDDING and len(info.shape) == 2:
        yield from ((_VOCABULARY, info.shape[0]), (_HIDDEN, info.shape[1]))
    elif info.shape and (name == FINAL_NORM or (module in _NORMS and part == "weight")):
        yield _NORMS.get(module, _HIDDEN), info.shape[0]
    elif ends and part == "weight" and "float" in info.dtype_name and len(info.shape) == 2:
        yield from zip(ends, info.shape, strict=True)
    elif ends and part in _OUTPUTS and info.shape:
        yield ends[0], info.shape[_OUTPUTS[part]]
