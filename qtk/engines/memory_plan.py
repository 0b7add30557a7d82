"""Does a model fit a GPU, and how fast could it decode at best: a table of memory, and the bandwidth bound.

A decoded token reads every weight but the embedding once, and the cache of every earlier position; no decoder can be
faster than the memory. Weights are counted exactly; activations and workspace are bounds from above.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtk.engines.description import Limits
from qtk.engines.memory_table import RESERVE_BYTES, MemoryPart, MemoryPlan
from qtk.models.spec import LM_HEAD_MODULE, Linear, ModelSpec
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme
from qtk.targets.gpu import GpuProfile

FLOAT_BYTES = 2
CACHE_STEP = 128


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's parts in a fp16 engine, the linears by block so that stages can be cut."""

    embedding: int
    blocks: tuple[int, ...]
    head: int

    @property
    def total(self) -> int:
        return self.embedding + sum(self.blocks) + self.head


def cache_length(positions: int) -> int:
    """The cache slots that a plan freezes for this many positions."""
    return -(-positions // CACHE_STEP) * CACHE_STEP


def model_bytes(spec: ModelSpec, scheme: QuantizationScheme) -> ModelBytes:
    """What the weights of a fp16 engine take."""
    blocks = []
    for layer in range(spec.num_layers):
        prefix = spec.block_prefix(layer)
        linears = sum(linear_bytes(linear, scheme.of(prefix + linear.name)) for linear in spec.linears())
        blocks.append(linears + sum(spec.norms().values()) * FLOAT_BYTES)
    table = spec.vocab_size * spec.hidden_size * FLOAT_BYTES
    head = Linear(LM_HEAD_MODULE, spec.vocab_size, spec.hidden_size, False, "attention_input", "")
    own_head = 0 if spec.tie_word_embeddings else linear_bytes(head, scheme.of(LM_HEAD_MODULE))
    return ModelBytes(table, tuple(blocks), own_head)


def linear_bytes(linear: Linear, scheme: LinearScheme) -> int:
    """Codes, scales and zero points, or floats; and the bias."""
    elements = linear.out_features * linear.in_features
    bias = linear.out_features * FLOAT_BYTES if linear.bias else 0
    if not scheme.quantized:
        return elements * FLOAT_BYTES + bias
    groups = elements // (scheme.group_size if scheme.group_size > 0 else linear.in_features)
    zeros = 0 if scheme.symmetric else groups * scheme.bits // 8
    return elements * scheme.bits // 8 + groups * FLOAT_BYTES + zeros + bias


def memory_plan(
    spec: ModelSpec, scheme: QuantizationScheme, limits: Limits, gpu: GpuProfile, cache_length: int
) -> MemoryPlan:
    """The table for one engine on one GPU."""
    weights = model_bytes(spec, scheme)
    per_position = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * FLOAT_BYTES
    cache = per_position * cache_length * limits.max_batch
    tokens = limits.max_input_len * limits.max_batch
    # At one time live: hidden state and its sum, the widest pair of products, and the attention scores of one block.
    widest = max(2 * spec.intermediate_size, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)
    activations = tokens * (2 * spec.hidden_size + 2 * widest) * FLOAT_BYTES
    scores = spec.num_heads * tokens * cache_length * FLOAT_BYTES
    scored = min(limits.max_input_len, 256) * limits.max_batch
    logits = scored * spec.vocab_size * (FLOAT_BYTES + 4)
    parts = [
        MemoryPart(name="weights", bytes=weights.total, how="codes, scales and float parts, exactly"),
        MemoryPart(
            name="cache", bytes=cache, how=f"{per_position} bytes a position x {cache_length} x {limits.max_batch} rows"
        ),
        MemoryPart(name="activations", bytes=activations, how=f"{tokens} tokens through the widest block, two alive"),
        MemoryPart(name="workspace", bytes=scores, how="attention scores of one block, should they be written out"),
        MemoryPart(name="logits", bytes=logits, how=f"{scored} scored positions, fp16 and float32"),
        MemoryPart(name="reserve", bytes=RESERVE_BYTES, how="driver context, kernels, fragmentation"),
    ]
    needed = sum(part.bytes for part in parts)
    read = sum(weights.blocks) + (weights.head or weights.embedding)
    middle = limits.max_input_len + limits.max_output_len // 2
    bound = None if gpu.bandwidth_gb_s is None else gpu.bandwidth_gb_s * 1e9 / (read + per_position * middle)
    return MemoryPlan(
        gpu=gpu.title,
        available_bytes=gpu.memory_bytes,
        parts=parts,
        needed_bytes=needed,
        fits=gpu.memory_bytes is None or needed <= gpu.memory_bytes,
        decode_bound_tokens_per_s=bound,
        bound_of=f"{read / 1e9:.2f} GB of weights and {per_position * middle / 1e9:.2f} GB of cache read a token",
    )
