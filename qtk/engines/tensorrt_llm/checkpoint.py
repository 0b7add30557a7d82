"""Writes the checkpoint that TensorRT-LLM's engine backend (up to 1.2) builds from: config.json and a file a rank.

Symmetric codes go out in the portable W4A16_AWQ form without activation scales: weight int8 [out / 2, in], two
neighbouring outputs to a byte in two's complement, and weights_scaling_factor float16 [out, in / group]. trtllm-build
itself lays them out for the GPU it runs on, so one checkpoint serves every GPU and no GPU is needed here.
Source: TensorRT-LLM's checkpoint documentation and ModelOpt's exporter (Apache-2.0). Not run on a GPU by us.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
from qtk.models.rope import RopeSettings
from qtk.models.spec import EMBEDDING, FINAL_NORM, LM_HEAD_MODULE, Linear, ModelSpec
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear

DTYPE = torch.float16
# Architectures whose tensors TensorRT-LLM names as below -> settings of their own in config.json.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qwen_type": "qwen2", "seq_length": 8192, "use_logn_attn": False},
}
Weight = torch.Tensor | QuantizedLinear


@dataclass(frozen=True)
class Split:
    """How a model is split: `tensor_parallel` ranks share each layer, `pipeline_parallel` stages share the layers."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    def layers(self, stage: int, count: int) -> range:
        """The layers of pipeline stage `stage`."""
        share = count // self.pipeline_parallel
        return range(stage * share, (stage + 1) * share)

    def kv_heads(self, rank: int, count: int) -> range:
        """The key/value heads of tensor-parallel rank `rank`: its share, or one that it holds together with others."""
        if count >= self.tensor_parallel:
            share = count // self.tensor_parallel
            return range(rank * share, (rank + 1) * share)
        head = rank * count // self.tensor_parallel
        return range(head, head + 1)


def write_checkpoint(
    weights: ModelWeights, directory: Path, split: Split, on_block: Callable[[int], None] = lambda layer: None
) -> None:
    """Writes config.json and rank*.safetensors into `directory`, one linear in memory at a time.

    The caller has made sure that the sizes divide (see targets/refusals.py and `TensorRtLlmBackend.refusals`).
    """
    spec = weights.spec
    (directory / "config.json").write_text(json.dumps(checkpoint_config(weights, split), indent=2) + "\n")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(CheckpointWriter(directory, specs, file_name=f"rank{rank}.safetensors"))
            for rank, specs in enumerate(_rank_specs(weights, split))
        ]
        stages = [
            writers[stage * split.tensor_parallel : (stage + 1) * split.tensor_parallel]
            for stage in range(split.pipeline_parallel)
        ]
        for writer in stages[0]:
            writer.write("transformer.vocab_embedding.weight", _float(weights, EMBEDDING))
        for stage, ranks in enumerate(stages):
            for local, layer in enumerate(split.layers(stage, spec.num_layers)):
                for rank, tensors in _layer(weights, split, layer):
                    for name, tensor in tensors.items():
                        ranks[rank].write(f"transformer.layers.{local}.{name}", tensor)
                on_block(layer)
        head = weights.lm_head(DTYPE)
        rows = padded_vocabulary(spec, split) // split.tensor_parallel
        for rank, writer in enumerate(stages[-1]):
            writer.write("transformer.ln_f.weight", _float(weights, FINAL_NORM))
            share = torch.zeros(rows, spec.hidden_size, dtype=DTYPE)
            part = head[rank * rows : (rank + 1) * rows]
            share[: part.shape[0]] = part
            writer.write("lm_head.weight", share)


def padded_vocabulary(spec: ModelSpec, split: Split) -> int:
    """Rows of lm_head over all ranks: the vocabulary, rounded up so that every rank has as many."""
    return -(-spec.vocab_size // split.tensor_parallel) * split.tensor_parallel


def checkpoint_config(weights: ModelWeights, split: Split) -> dict[str, Any]:
    """The checkpoint's config.json: only keys that every version up to 1.2 knows."""
    spec = weights.spec
    quantization: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}
    if weights.quantized:
        quantization = {
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": None,
            "group_size": weights.scheme.default.group_size,
            "has_zero_point": False,
            "pre_quant_scale": False,
            "exclude_modules": [LM_HEAD_MODULE],
        }
    return {
        "architecture": spec.architecture,
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_size": spec.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": spec.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": spec.max_positions,
        "rotary_base": spec.rope.theta,
        "rotary_scaling": rotary_scaling(spec.rope),
        "attn_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": split.ranks,
            "tp_size": split.tensor_parallel,
            "pp_size": split.pipeline_parallel,
        },
        "quantization": quantization,
        **ARCHITECTURES[spec.architecture],
    }


def rotary_scaling(rope: RopeSettings) -> dict[str, Any] | None:
    """The `rotary_scaling` of config.json, with the keys of a Hugging Face rope_scaling. If it is dropped, the model produces nonsense."""
    if rope.kind == "linear":
        return {"type": "linear", "factor": rope.factor}
    if rope.kind == "llama3":
        return {
            "type": "llama3",
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_positions,
        }
    return None


def _layer(weights: ModelWeights, split: Split, layer: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(tensor-parallel rank, tensors by name below the layer) of one layer, a linear at a time."""
    spec, prefix = weights.spec, weights.spec.block_prefix(layer)
    tp, everyone = split.tensor_parallel, range(split.tensor_parallel)
    biased = {linear.name: linear.bias for linear in spec.linears()}

    def linear(name: str) -> tuple[Weight, torch.Tensor | None]:
        bias = weights.bias(prefix + name) if biased[name] else None
        return weights.linear(prefix + name), bias

    def by_rows(target: str, weight: Weight, bias: torch.Tensor | None, rows: range) -> dict[str, torch.Tensor]:
        return _named(target, _rows(weight, rows), None if bias is None else bias[rows.start : rows.stop])

    for name, target in (("input_layernorm", "input_layernorm"), ("post_attention_layernorm", "post_layernorm")):
        norm = _float(weights, f"{prefix}{name}.weight")
        for rank in everyone:
            yield rank, {f"{target}.weight": norm}
    q, k, v = (linear(f"self_attn.{n}_proj") for n in "qkv")
    for rank in everyone:
        query, shared = _qkv_rows(spec, split, rank)
        parts = [(q, query), (k, shared), (v, shared)]
        weight = _stacked([_rows(w, rows) for (w, _), rows in parts])
        biases = [b[rows.start : rows.stop] for (_, b), rows in parts if b is not None]
        yield rank, _named("attention.qkv", weight, torch.cat(biases) if biases else None)
    # The activated half of the MLP is "fc" there, the other one "gate".
    for name, target in (("mlp.gate_proj", "mlp.fc"), ("mlp.up_proj", "mlp.gate")):
        weight, bias = linear(name)
        share = spec.intermediate_size // tp
        for rank in everyone:
            yield rank, by_rows(target, weight, bias, range(rank * share, (rank + 1) * share))
    for name, target in (("self_attn.o_proj", "attention.dense"), ("mlp.down_proj", "mlp.proj")):
        weight, bias = linear(name)
        inputs = weight.codes.shape[1] if isinstance(weight, QuantizedLinear) else weight.shape[1]
        for rank in everyone:
            columns = range(rank * (inputs // tp), (rank + 1) * (inputs // tp))
            yield rank, _named(target, _columns(weight, columns), bias)


def _qkv_rows(spec: ModelSpec, split: Split, rank: int) -> tuple[range, range]:
    """Rows of q, and rows of k and of v, that a rank holds."""
    heads, d = spec.num_heads // split.tensor_parallel, spec.head_dim
    shared = split.kv_heads(rank, spec.num_kv_heads)
    return range(rank * heads * d, (rank + 1) * heads * d), range(shared.start * d, shared.stop * d)


def _rank_specs(weights: ModelWeights, split: Split) -> Iterator[dict[str, TensorSpec]]:
    """What each rank's file will hold, rank by rank."""
    spec = weights.spec
    norm = TensorSpec(DTYPE, (spec.hidden_size,))
    for stage in range(split.pipeline_parallel):
        for rank in range(split.tensor_parallel):
            specs: dict[str, TensorSpec] = {}
            if stage == 0:
                specs["transformer.vocab_embedding.weight"] = TensorSpec(DTYPE, (spec.vocab_size, spec.hidden_size))
            for local, layer in enumerate(split.layers(stage, spec.num_layers)):
                for name, value in _layer_specs(weights, split, rank, layer).items():
                    specs[f"transformer.layers.{local}.{name}"] = value
            if stage == split.pipeline_parallel - 1:
                rows = padded_vocabulary(spec, split) // split.tensor_parallel
                specs["transformer.ln_f.weight"] = norm
                specs["lm_head.weight"] = TensorSpec(DTYPE, (rows, spec.hidden_size))
            yield specs


def _layer_specs(weights: ModelWeights, split: Split, rank: int, layer: int) -> dict[str, TensorSpec]:
    spec, tp = weights.spec, split.tensor_parallel
    by_name: dict[str, Linear] = {linear.name: linear for linear in spec.linears()}
    query, shared = _qkv_rows(spec, split, rank)
    share = spec.intermediate_size // tp
    shapes = {
        "attention.qkv": ("self_attn.q_proj", len(query) + 2 * len(shared), spec.hidden_size),
        "attention.dense": ("self_attn.o_proj", spec.hidden_size, spec.num_heads * spec.head_dim // tp),
        "mlp.fc": ("mlp.gate_proj", share, spec.hidden_size),
        "mlp.gate": ("mlp.up_proj", share, spec.hidden_size),
        "mlp.proj": ("mlp.down_proj", spec.hidden_size, share),
    }
    norm = TensorSpec(DTYPE, (spec.hidden_size,))
    specs = {"input_layernorm.weight": norm, "post_layernorm.weight": norm}
    for target, (source, out, inputs) in shapes.items():
        scheme = weights.scheme.of(spec.block_prefix(layer) + source)
        if not scheme.quantized:
            specs[f"{target}.weight"] = TensorSpec(DTYPE, (out, inputs))
        else:
            specs[f"{target}.weight"] = TensorSpec(torch.int8, (out // 2, inputs))
            specs[f"{target}.weights_scaling_factor"] = TensorSpec(DTYPE, (out, inputs // scheme.group_size))
        if by_name[source].bias:
            specs[f"{target}.bias"] = TensorSpec(DTYPE, (out,))
    return specs


def _named(target: str, weight: Weight, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """One linear's tensors by name."""
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(weight, QuantizedLinear):
        nibbles = weight.signed_codes().view(torch.uint8) & 15
        tensors[f"{target}.weight"] = (nibbles[0::2] | (nibbles[1::2] << 4)).view(torch.int8)
        tensors[f"{target}.weights_scaling_factor"] = weight.scales.to(DTYPE)
    else:
        tensors[f"{target}.weight"] = weight.to(DTYPE)
    if bias is not None:
        tensors[f"{target}.bias"] = bias.to(DTYPE)
    return tensors


def _rows(weight: Weight, rows: range) -> Weight:
    if isinstance(weight, QuantizedLinear):
        return weight.rows(rows.start, rows.stop)
    return weight[rows.start : rows.stop]


def _columns(weight: Weight, columns: range) -> Weight:
    if not isinstance(weight, QuantizedLinear):
        return weight[:, columns.start : columns.stop]
    group = weight.group_size
    return replace(
        weight,
        codes=weight.codes[:, columns.start : columns.stop],
        scales=weight.scales[:, columns.start // group : columns.stop // group],
    )


def _stacked(weights: list[Weight]) -> Weight:
    """Linears of one input, stacked by rows."""
    if isinstance(weights[0], QuantizedLinear):
        parts = [w for w in weights if isinstance(w, QuantizedLinear)]
        codes, scales = torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts])
        return replace(parts[0], codes=codes, scales=scales)
    return torch.cat([w for w in weights if isinstance(w, torch.Tensor)])


def _float(weights: ModelWeights, name: str) -> torch.Tensor:
    return weights.checkpoint.tensor(name, finite=True).to(DTYPE)
