"""The portable decoder graph: one ONNX file that ONNX Runtime runs and TensorRT compiles.

Standard operators of opset 24 only. Attention has the 4-D layout with a boolean mask, the cache is updated by
TensorScatter, positions turn cos/sin tables with the rope scaling baked in, INT4 weights are blocked DequantizeLinear +
MatMul pairs (both runtimes fuse them), and GatherND picks the positions whose logits are wanted before the head.

Inputs  input_ids [batch, tokens] int64 · position_ids [batch, tokens] int64 · write_indices [batch] int64 (the cache
        slot of each row's first token) · attention_mask [batch, 1, tokens, cache] bool, True = may look, and
        attention_mask_window_W for layers with a sliding window of W · logits_positions [batch, wanted, 1] int64 ·
        past_key.L, past_value.L [batch, kv_heads, cache, head_dim]
Outputs logits [batch, wanted, vocab] · present_key.L, present_value.L, which may share the past's memory
A later pipeline stage takes hidden_in [batch, tokens, hidden] for input_ids; an earlier one gives hidden_out for logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from onnx import TensorProto

from qtk.checkpoint.reader import require_finite
from qtk.engines.memory import HEAD_BLOCK
from qtk.engines.onnx.file import ONNX_TYPES, GraphFile
from qtk.engines.onnx.ports import mask_name, stage_windows
from qtk.models.spec import EMBEDDING, FINAL_NORM, LM_HEAD_MODULE, Linear
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class GraphOptions:
    """What the graph is written for.

    positions: rows of the cos/sin tables, the longest sequence. lm_head_bits: 16 leaves the head in the graph's dtype,
    8 rounds it to blocks of 32 with one scale each (a head that the checkpoint holds quantized stays as it is).
    layers: the blocks of this pipeline stage, as (first, one past the last); None for all.
    """

    dtype: torch.dtype
    positions: int
    lm_head_bits: int = 16
    layers: tuple[int, int] | None = None


def write_graph(
    weights: ModelWeights,
    directory: Path,
    options: GraphOptions,
    *,
    name: str = "model",
    on_block: Callable[[int], None] = lambda layer: None,
) -> Path:
    """Writes `name`.onnx and `name`.onnx.data into `directory`, one tensor in memory at a time. Returns the model's path.

    InputError for weights that hold NaN or do not fit the dtype.
    """
    with GraphFile(directory, name) as file:
        _GraphWriter(weights, file, options).write(on_block)
        return file.path


class _GraphWriter:
    def __init__(self, weights: ModelWeights, file: GraphFile, options: GraphOptions) -> None:
        self.weights, self.file, self.options = weights, file, options
        self.spec = weights.spec
        self.dtype = options.dtype
        self.first, self.last = options.layers or (0, self.spec.num_layers)
        self.has_embedding = self.first == 0
        self.has_head = self.last == self.spec.num_layers

    def write(self, on_block: Callable[[int], None]) -> None:
        file, spec = self.file, self.spec
        hidden = self._embedding() if self.has_embedding else self._hidden_input()
        file.input("position_ids", torch.int64, ["batch", "tokens"])
        file.input("write_indices", torch.int64, ["batch"])
        for window in stage_windows(spec, (self.first, self.last)):
            file.input(mask_name(window), torch.bool, ["batch", 1, "tokens", "cache"])
        self._rope_tables()
        if self.has_head:
            file.input("logits_positions", torch.int64, ["batch", "wanted", 1])
        for layer in range(self.first, self.last):
            hidden = self._block(layer, hidden)
            on_block(layer)
        if self.has_head:
            self._head(hidden)
        else:
            file.output("hidden_out", self.dtype, ["batch", "tokens", spec.hidden_size])
            file.node("Identity", [hidden], "hidden_out")
        # The cache's outputs come last, so that output 0 is the result of the stage.
        file.outputs.insert(0, file.outputs.pop())
        facts = {"architecture": spec.architecture, "layers": f"{self.first}:{self.last}"}
        file.save("decoder", facts)

    def _embedding(self) -> str:
        self.file.input("input_ids", torch.int64, ["batch", "tokens"])
        table = self._embedding_table()
        if self._stored_embedding_dtype() == self.dtype:
            return self.file.node("Gather", [table, "input_ids"], "embedding", axis=0)
        rows = self.file.node("Gather", [table, "input_ids"], "embedding_stored", axis=0)
        return self.file.node("Cast", [rows], "embedding", to=ONNX_TYPES[self.dtype])

    def _hidden_input(self) -> str:
        return self.file.input("hidden_in", self.dtype, ["batch", "tokens", self.spec.hidden_size])

    def _head_reads_embedding(self) -> bool:
        return self.has_head and self.spec.tie_word_embeddings and self.options.lm_head_bits == 16

    def _stored_embedding_dtype(self) -> torch.dtype:
        """The dtype of the table in the file. For a float32 graph, a bf16 or fp16 table stays as it was saved and its rows are
        widened after the look-up: half the size."""
        saved = self.weights.checkpoint.info(EMBEDDING).dtype
        wide = self.dtype == torch.float32 and saved.itemsize == 2 and not self._head_reads_embedding()
        return saved if wide else self.dtype

    def _embedding_table(self) -> str:
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        if EMBEDDING not in self.file:
            self.file.tensor_in_rows(EMBEDDING, shape, self._stored_embedding_dtype(), self._matrix_rows(EMBEDDING))
        return EMBEDDING

    def _matrix_rows(self, name: str) -> Iterator[torch.Tensor]:
        rows = self.weights.checkpoint.info(name).shape[0]
        for start in range(0, rows, _ROWS_AT_ONCE):
            piece = self.weights.checkpoint.rows(name, start, min(rows, start + _ROWS_AT_ONCE))
            require_finite(piece, f"{self.weights.checkpoint.path}: tensor {name}")
            yield piece

    def _rope_tables(self) -> None:
        cos, sin = self.spec.rope.tables(self.spec.head_dim, self.options.positions)
        self.file.tensor("rope.cos", cos, self.dtype)
        self.file.tensor("rope.sin", sin, self.dtype)

    def _norm(self, x: str, weight: str, output: str) -> str:
        if weight not in self.file:
            self.file.tensor(weight, self.weights.checkpoint.tensor(weight, finite=True), self.dtype)
        return self.file.node(
            "RMSNormalization",
            [x, weight],
            output,
            axis=-1,
            epsilon=self.spec.rms_norm_eps,
            stash_type=TensorProto.FLOAT,
        )

    def _block(self, layer: int, hidden: str) -> str:
        file, spec, prefix = self.file, self.spec, self.spec.block_prefix(layer)
        linear = {item.name.rpartition(".")[2]: item for item in spec.linears()}

        def product(x: str, *names: str) -> str:
            return self._product(prefix, [linear[f"{name}_proj"] for name in names], x)

        x = self._norm(hidden, f"{prefix}input_layernorm.weight", f"{prefix}attention_input")
        q, k, v = self._heads(prefix, product(x, "q", "k", "v"))
        key, value = (self._cache(layer, kind, update) for kind, update in (("key", k), ("value", v)))
        y = file.node("Attention", [q, key, value, mask_name(spec.windows[layer])], f"{prefix}attention")
        y = file.node("Transpose", [y], f"{prefix}attention_by_token", perm=[0, 2, 1, 3])
        flat = file.constant("shape.flat", [0, 0, spec.num_heads * spec.head_dim])
        y = file.node("Reshape", [y, flat], f"{prefix}attention_output")
        hidden = file.node("Add", [hidden, product(y, "o")], f"{prefix}after_attention")

        x = self._norm(hidden, f"{prefix}post_attention_layernorm.weight", f"{prefix}mlp_input")
        both = product(x, "gate", "up")
        sizes = file.constant("split.gate_up", [spec.intermediate_size] * 2)
        gate, up = file.multi_node("Split", [both, sizes], [f"{prefix}mlp.gate", f"{prefix}mlp.up"], axis=-1)
        sigmoid = file.node("Sigmoid", [gate], f"{prefix}mlp.sigmoid")
        silu = file.node("Mul", [gate, sigmoid], f"{prefix}mlp.silu")
        y = file.node("Mul", [silu, up], f"{prefix}mlp_hidden")
        return file.node("Add", [hidden, product(y, "down")], f"{prefix}after_mlp")

    def _heads(self, prefix: str, x: str) -> tuple[str, str, str]:
        """[batch, tokens, all heads * head_dim] -> q, k, v [batch, heads, tokens, head_dim]; q and k turned by position.

        All heads are laid out and turned together: when one token is decoded at a time, the number of nodes decides the time.
        """
        file, spec = self.file, self.spec
        q, kv = spec.num_heads, spec.num_kv_heads
        x = file.node("Reshape", [x, file.constant("shape.heads", [0, 0, q + 2 * kv, spec.head_dim])], f"{prefix}heads")
        if spec.qk_norm:
            parts = [f"{prefix}{which}_by_token" for which in "qkv"]
            file.multi_node("Split", [x, file.constant("split.heads", [q, kv, kv])], parts, axis=2)
            for i, which in enumerate("qk"):
                parts[i] = self._norm(parts[i], f"{prefix}self_attn.{which}_norm.weight", f"{prefix}{which}_normed")
            x = file.node("Concat", parts, f"{prefix}heads_normed", axis=2)
        x = file.node("Transpose", [x], f"{prefix}heads_first", perm=[0, 2, 1, 3])
        sizes = file.constant("split.turned", [q + kv, kv])
        turned, v = file.multi_node("Split", [x, sizes], [f"{prefix}to_turn", f"{prefix}v"], axis=1)
        turned = file.node("RotaryEmbedding", [turned, "rope.cos", "rope.sin", "position_ids"], f"{prefix}turned")
        sizes = file.constant("split.query", [q, kv])
        query, k = file.multi_node("Split", [turned, sizes], [f"{prefix}q", f"{prefix}k"], axis=1)
        return query, k, v

    def _cache(self, layer: int, kind: str, update: str) -> str:
        shape: list[int | str] = ["batch", self.spec.num_kv_heads, "cache", self.spec.head_dim]
        past, present = f"past_{kind}.{layer}", f"present_{kind}.{layer}"
        self.file.input(past, self.dtype, shape)
        self.file.output(present, self.dtype, shape)
        return self.file.node("TensorScatter", [past, update, "write_indices"], present, axis=2, mode="linear")

    def _product(self, prefix: str, linears: Sequence[Linear], x: str) -> str:
        """x times the weights of linears that read the same input. Weights that are stored alike lie side by side in one
        matrix."""
        names = [prefix + linear.name for linear in linears]
        weights = [self.weights.linear(name) for name in names]
        fused = _side_by_side(weights)
        if fused is None:
            parts = [self._matmul(name, weight, x) for name, weight in zip(names, weights, strict=True)]
            y = self.file.node("Concat", parts, f"{prefix}{linears[0].fused_with}", axis=-1)
        else:
            y = self._matmul(names[0] if len(names) == 1 else f"{prefix}{linears[0].fused_with}", fused, x)
        biases = [self.weights.bias(name) for name, linear in zip(names, linears, strict=True) if linear.bias]
        present = [bias for bias in biases if bias is not None]
        if not present:
            return y
        return self.file.node("Add", [y, self.file.tensor(f"{y}.bias", torch.cat(present), self.dtype)], f"{y}.biased")

    def _matmul(self, module: str, weight: QuantizedLinear | torch.Tensor, x: str) -> str:
        if isinstance(weight, QuantizedLinear):
            matrix = self._quantized(module, weight)
        else:
            matrix = self.file.tensor(f"{module}.weight", weight.t(), self.dtype)
        return self.file.node("MatMul", [x, matrix], f"{module}.product")

    def _quantized(self, module: str, weight: QuantizedLinear) -> str:
        """Blocked DequantizeLinear of the transposed codes [in, out]: scales [in / group, out], zero points only if asymmetric."""
        shape = (weight.codes.shape[1], weight.codes.shape[0])
        groups = (weight.scales.shape[1], weight.scales.shape[0])
        codes = weight.codes.t().contiguous()
        if weight.zeros is None:
            # The two's complement of (code - middle) is the code with its top bit flipped.
            codes ^= weight.middle
            kind = TensorProto.INT4 if weight.bits == 4 else TensorProto.INT8
        else:
            kind = TensorProto.UINT4 if weight.bits == 4 else TensorProto.UINT8
        names = [
            self._integers(f"{module}.codes", kind, shape, codes, weight.bits),
            self.file.tensor(f"{module}.scales", weight.scales.t(), self.dtype),
        ]
        if weight.zeros is not None:
            zeros = weight.zeros.t().contiguous()
            names.append(self._integers(f"{module}.zeros", kind, groups, zeros, weight.bits))
        return self.file.node("DequantizeLinear", names, f"{module}.weight", axis=0, block_size=weight.group_size)

    def _integers(self, name: str, kind: int, shape: tuple[int, int], codes: torch.Tensor, bits: int) -> str:
        flat = codes.reshape(-1)
        if bits == 4:
            flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
            flat = flat[0::2] | (flat[1::2] << 4)  # two to a byte, the first in the low half
        return self.file.packed(name, kind, shape, flat)

    def _head(self, hidden: str) -> None:
        file, spec = self.file, self.spec
        x = file.node("GatherND", [hidden, "logits_positions"], "wanted_hidden", batch_dims=1)
        x = self._norm(x, FINAL_NORM, "normed_hidden")
        stored = self._stored_head()
        if stored is not None:
            file.node("MatMul", [x, self._quantized(LM_HEAD_MODULE, stored)], "logits")
        elif self.options.lm_head_bits == 8:
            file.node("MatMul", [x, self._rounded_head()], "logits")
        else:
            matrix = file.node("Transpose", [self._float_head()], "lm_head.transposed", perm=[1, 0])
            file.node("MatMul", [x, matrix], "logits")
        file.output("logits", self.dtype, ["batch", "wanted", spec.vocab_size])

    def _stored_head(self) -> QuantizedLinear | None:
        """The head, where the checkpoint itself holds it quantized; else None."""
        if not self.weights.scheme.of(LM_HEAD_MODULE).quantized:
            return None
        weight = self.weights.linear(LM_HEAD_MODULE)
        return weight if isinstance(weight, QuantizedLinear) else None

    def _float_head(self) -> str:
        """The head [vocab, hidden] as the checkpoint has it, which a tied model shares with its embedding."""
        if self.spec.tie_word_embeddings:
            return self._embedding_table()
        name = self.spec.lm_head_name
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return self.file.tensor_in_rows(name, shape, self.dtype, self._matrix_rows(name))

    def _rounded_head(self) -> str:
        """The head at 8 bits: each block of 32 inputs of a row has scale max|w| / 127."""
        vocab, size = self.spec.vocab_size, self.spec.hidden_size
        blocks = size // HEAD_BLOCK
        scales = torch.empty(blocks, vocab)

        def strips() -> Iterator[tuple[int, torch.Tensor]]:
            first = 0
            for rows in self._matrix_rows(self.spec.lm_head_name):
                grouped = rows.float().view(rows.shape[0], blocks, HEAD_BLOCK)
                scale = (grouped.abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float16).tiny).to(self.dtype)
                codes = (grouped / scale.float().unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
                scales[:, first : first + rows.shape[0]] = scale.float().t()
                yield first, codes.view(rows.shape[0], size).t().contiguous()
                first += rows.shape[0]

        codes = self.file.int8_in_columns(f"{LM_HEAD_MODULE}.codes", (size, vocab), strips())
        names = [codes, self.file.tensor(f"{LM_HEAD_MODULE}.scales", scales, self.dtype)]
        return self.file.node("DequantizeLinear", names, f"{LM_HEAD_MODULE}.dequantized", axis=0, block_size=HEAD_BLOCK)


def _side_by_side(weights: Sequence[QuantizedLinear | torch.Tensor]) -> QuantizedLinear | torch.Tensor | None:
    """The weights as one, outputs after outputs; None where they are not stored alike."""
    if len(weights) == 1:
        return weights[0]
    quantized = [weight for weight in weights if isinstance(weight, QuantizedLinear)]
    if not quantized:
        return torch.cat([weight for weight in weights if isinstance(weight, torch.Tensor)])
    kinds = {(weight.bits, weight.group_size, weight.symmetric) for weight in quantized}
    if len(quantized) < len(weights) or len(kinds) > 1:
        return None
    zeros = [weight.zeros for weight in quantized if weight.zeros is not None]
    return replace(
        quantized[0],
        codes=torch.cat([weight.codes for weight in quantized]),
        scales=torch.cat([weight.scales for weight in quantized]),
        zeros=torch.cat(zeros) if zeros else None,
    )
