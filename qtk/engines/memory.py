"""The memory that an engine takes on its GPU, and the bound that the GPU's bandwidth sets to its speed.

For each token, a decoder reads every weight but the embedding once, and the cache of every earlier position: it cannot be
faster than the memory. Weights are counted exactly; activations and workspace are upper bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtk.engines.description import EngineLimits, MemoryPart, MemoryTable
from qtk.models.spec import LM_HEAD_MODULE, Linear, ModelSpec
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme
from qtk.sizes import gpu_size_text, size_text
from qtk.targets.gpu import GpuProfile

FLOAT_BYTES = 2  # of the engines of a GPU
HEAD_BLOCK = 32  # weights that share a scale in a head that the engine rounds to 8 bits
# What the driver's context and the runtime's libraries hold on a GPU before any engine is loaded, with room for
# fragmentation. Not measured here (no GPU): a figure commonly seen, rounded up.
RESERVE_BYTES = 1 << 30
_SCORED_POSITIONS = 256


@dataclass(frozen=True)
class FloatParts:
    """How an engine holds what is not quantized.

    dtype: of its floats, scales and cache. embedding_bytes: of a value of the embedding, which a processor keeps in 16 bits
    unless the head reads it. head_bits: 8 where the engine rounds the head by itself; a tied model then has a head of its
    own.
    """

    dtype: str = "float16"
    embedding_bytes: int = FLOAT_BYTES
    head_bits: int = 16

    @property
    def bytes(self) -> int:
        """Of one float."""
        return 4 if self.dtype == "float32" else 2


FP16 = FloatParts()


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's parts in an engine, the linears by block so that stages can be cut. tied: the head reads the
    embedding, so `head` is 0."""

    embedding: int
    blocks: tuple[int, ...]
    head: int
    tied: bool

    @property
    def total(self) -> int:
        return self.embedding + sum(self.blocks) + self.head

    def stage(self, layers: tuple[int, int]) -> int:
        """Bytes of one stage's graph: its blocks, the embedding in the first, the head (a tied one again) in the last."""
        first, last = layers[0] == 0, layers[1] == len(self.blocks)
        embedding = self.embedding if first or (last and self.tied) else 0
        return sum(self.blocks[layers[0] : layers[1]]) + embedding + (self.head if last else 0)


def model_bytes(spec: ModelSpec, scheme: QuantizationScheme, floats: FloatParts = FP16) -> ModelBytes:
    """The bytes of the weights in an engine that holds its floats so."""
    blocks = []
    for layer in range(spec.num_layers):
        prefix = spec.block_prefix(layer)
        linears = sum(_linear_bytes(linear, scheme.of(prefix + linear.name), floats) for linear in spec.linears())
        blocks.append(linears + sum(spec.norms().values()) * floats.bytes)
    table = spec.vocab_size * spec.hidden_size * floats.embedding_bytes
    head = Linear(LM_HEAD_MODULE, spec.vocab_size, spec.hidden_size, False, "attention_input", "")
    tied = spec.tie_word_embeddings and floats.head_bits == 16
    stored = scheme.of(LM_HEAD_MODULE)
    if floats.head_bits < 16:
        stored = LinearScheme(floats.head_bits, HEAD_BLOCK, True)
    return ModelBytes(table, tuple(blocks), 0 if tied else _linear_bytes(head, stored, floats), tied)


def _linear_bytes(linear: Linear, scheme: LinearScheme, floats: FloatParts) -> int:
    """Codes, scales and zero points, or floats; and the bias."""
    elements = linear.out_features * linear.in_features
    bias = linear.out_features * floats.bytes if linear.bias else 0
    if not scheme.quantized:
        return elements * floats.bytes + bias
    groups = elements // (scheme.group_size if scheme.group_size > 0 else linear.in_features)
    zeros = 0 if scheme.symmetric else groups * scheme.bits // 8
    return elements * scheme.bits // 8 + groups * floats.bytes + zeros + bias


def memory_table(
    spec: ModelSpec, scheme: QuantizationScheme, limits: EngineLimits, gpu: GpuProfile, floats: FloatParts = FP16
) -> MemoryTable:
    """The table for one engine on one GPU or processor."""
    weights, slots = model_bytes(spec, scheme, floats), limits.cache_slots
    per_position = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * floats.bytes
    cache = per_position * slots * limits.max_batch
    tokens = limits.max_input_len * limits.max_batch
    # Alive at one time: the hidden state and its sum, the widest pair of products, and the attention scores of one block.
    widest = max(2 * spec.intermediate_size, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)
    activations = tokens * (2 * spec.hidden_size + 2 * widest) * floats.bytes
    scores = spec.num_heads * tokens * slots * floats.bytes
    scored = min(limits.max_input_len, _SCORED_POSITIONS) * limits.max_batch
    copies, in_words = (4, "float32") if floats.bytes == 4 else (FLOAT_BYTES + 4, "fp16 and float32")
    logits = scored * spec.vocab_size * copies
    reserve = "the runtime, Python, fragmentation" if gpu.is_cpu else "driver context, kernels, fragmentation"
    parts = [
        MemoryPart(name="weights", bytes=weights.total, how="codes, scales and float parts, exactly"),
        MemoryPart(
            name="cache", bytes=cache, how=f"{per_position} bytes a position x {slots} x {limits.max_batch} rows"
        ),
        MemoryPart(name="activations", bytes=activations, how=f"{tokens} tokens through the widest block, two alive"),
        MemoryPart(name="workspace", bytes=scores, how="attention scores of one block, should they be written out"),
        MemoryPart(name="logits", bytes=logits, how=f"{scored} scored positions, {in_words}"),
        MemoryPart(name="reserve", bytes=RESERVE_BYTES, how=reserve),
    ]
    needed = sum(part.bytes for part in parts)
    read = sum(weights.blocks) + (weights.head or weights.embedding)
    middle = limits.max_input_len + limits.max_output_len // 2
    bound = None if gpu.bandwidth_gb_s is None else gpu.bandwidth_gb_s * 1e9 / (read + per_position * middle)
    return MemoryTable(
        gpu=gpu.title,
        available_bytes=gpu.memory_bytes,
        parts=parts,
        needed_bytes=needed,
        fits=gpu.memory_bytes is None or needed <= gpu.memory_bytes,
        decode_bound_tokens_per_s=bound,
        bound_of=f"{size_text(read)} of weights and {size_text(per_position * middle)} of cache read a token",
    )


def memory_refusals(memory: MemoryTable, gpus: int = 1) -> list[str]:
    """The sentence for so many of these GPUs that cannot hold the engine together; empty when they can."""
    available, needed = memory.available_bytes, memory.needed_bytes + (gpus - 1) * RESERVE_BYTES
    if available is None or needed <= available * gpus:
        return []
    has = f"{memory.gpu} has" if gpus == 1 else f"{gpus} x {memory.gpu} have"
    return [f"{gpu_size_text(needed)} are needed, {has} {gpu_size_text(available * gpus)}"]
