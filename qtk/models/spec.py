"""What a decoder is made of, read from config.json: sizes, rope, norms, biases, windows, and its linears by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qtk.errors import InputError
from qtk.models.rope import RopeSettings, positive_number

# What a linear reads. Linears that read the same thing share one Hessian, and one AWQ scale.
Reads = Literal["attention_input", "attention_output", "mlp_input", "mlp_hidden"]


@dataclass(frozen=True)
class Linear:
    """One linear of a decoder block: `name` below the block's prefix, weight shape [out_features, in_features].

    `fused_with` names the set that runtimes fuse into one product ("qkv", "gate_up" or "" for none): its members
    must be quantized alike.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool
    reads: Reads
    fused_with: str


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and switches of a Llama-like decoder (pre-norm, gated MLP, rotary positions, grouped-query attention)."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeSettings
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    # Attention window in tokens, per layer (None: full attention).
    windows: tuple[int | None, ...]

    def linears(self) -> tuple[Linear, ...]:
        """The linears of one block, in the order in which data passes them."""
        q, kv, h, m = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
            self.hidden_size,
            self.intermediate_size,
        )
        return (
            Linear("self_attn.q_proj", q, h, self.qkv_bias, "attention_input", "qkv"),
            Linear("self_attn.k_proj", kv, h, self.qkv_bias, "attention_input", "qkv"),
            Linear("self_attn.v_proj", kv, h, self.qkv_bias, "attention_input", "qkv"),
            Linear("self_attn.o_proj", h, q, self.output_bias, "attention_output", ""),
            Linear("mlp.gate_proj", m, h, self.mlp_bias, "mlp_input", "gate_up"),
            Linear("mlp.up_proj", m, h, self.mlp_bias, "mlp_input", "gate_up"),
            Linear("mlp.down_proj", h, m, self.mlp_bias, "mlp_hidden", ""),
        )

    def norms(self) -> dict[str, int]:
        """Norm weights of one block: name below the block's prefix -> size."""
        norms = {"input_layernorm": self.hidden_size, "post_attention_layernorm": self.hidden_size}
        if self.qk_norm:
            norms |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        return norms

    @staticmethod
    def block_prefix(layer: int) -> str:
        """Tensor-name prefix of decoder block `layer`, with its dot."""
        return f"model.layers.{layer}."

    def block_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Full tensor name -> shape of everything in block `layer` of a float checkpoint."""
        prefix = self.block_prefix(layer)
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}{n}.weight": (size,) for n, size in self.norms().items()}
        for linear in self.linears():
            shapes[f"{prefix}{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{prefix}{linear.name}.bias"] = (linear.out_features,)
        return shapes

    def all_tensors(self) -> dict[str, tuple[int, ...]]:
        """Full tensor name -> shape of the whole float checkpoint; lm_head only where it is not tied."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            shapes |= self.block_tensors(layer)
        shapes[FINAL_NORM] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes[LM_HEAD] = (self.vocab_size, self.hidden_size)
        return shapes

    def all_linears(self) -> Iterator[tuple[str, Linear]]:
        """(full module name, linear) of every linear of the blocks."""
        for layer in range(self.num_layers):
            for linear in self.linears():
                yield self.block_prefix(layer) + linear.name, linear

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """Full module name -> [out, in] of every linear that can be quantized, an lm_head of its own included."""
        shapes = {name: (linear.out_features, linear.in_features) for name, linear in self.all_linears()}
        if not self.tie_word_embeddings:
            shapes[LM_HEAD_MODULE] = (self.vocab_size, self.hidden_size)
        return shapes

    @property
    def lm_head_name(self) -> str:
        """The tensor that the logits are computed with."""
        return EMBEDDING if self.tie_word_embeddings else LM_HEAD

    def parameters(self) -> int:
        """Number of parameters (a tied head counted once)."""
        total = 0
        for shape in self.all_tensors().values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD_MODULE = "lm_head"
LM_HEAD = f"{LM_HEAD_MODULE}.weight"
# What transformers takes for fields that a Qwen config leaves out.
QWEN_DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
# Beyond every model: what a wrong number would have allocated stays small.
_MOST_LAYERS, _LARGEST = 10_000, 100_000_000
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def read_spec(config: Mapping[str, Any], **fixed: Any) -> ModelSpec:
    """A ModelSpec from the fields that Llama-like configs share; `fixed` holds what an architecture decides itself.

    Raises InputError naming every required field that is absent or not a positive whole number, and any other field
    whose value is of no use.
    """
    required = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    bad = [k for k in required if not _is_whole(config.get(k))]
    if bad:
        raise InputError(f"config.json: {', '.join(bad)} must be given as positive whole numbers.")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InputError(f"config.json: hidden_act is {config['hidden_act']!r}; qtk knows silu.")
    huge = [k for k in required if config[k] > (_MOST_LAYERS if k == "num_hidden_layers" else _LARGEST)]
    if huge:
        raise InputError(
            f"config.json: {', '.join(f'{k} is {_digits(config[k])}' for k in huge)}: no model is that large."
        )
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = whole_number(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly.")
    max_positions = whole_number(config, "max_position_embeddings", 2048)
    return ModelSpec(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=whole_number(config, "head_dim", max(1, config["hidden_size"] // heads)),
        vocab_size=config["vocab_size"],
        max_positions=max_positions,
        rms_norm_eps=positive_number(config, "rms_norm_eps", 1e-6),
        rope=RopeSettings.from_config(config, max_positions),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **{
            "output_bias": False,
            "mlp_bias": False,
            "qkv_bias": False,
            "qk_norm": False,
            "windows": (None,) * layers,
            **fixed,
        },
    )


def whole_number(config: Mapping[str, Any], name: str, default: int) -> int:
    """A field that must be a positive whole number, `default` where it is absent or null. InputError otherwise."""
    value = config.get(name)
    if value is None:
        return default
    if not _is_whole(value):
        raise InputError(f"config.json: {name} is {value!r}, and must be a positive whole number.")
    if value > _LARGEST:
        raise InputError(f"config.json: {name} is {_digits(value)}: no model is that large.")
    return int(value)


def _digits(value: int) -> str:
    """A number of any length, as far as it is read."""
    return f"{value:,}" if value < 10**15 else "beyond 1e15"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def layer_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sliding window of each layer for a Qwen config, with transformers' defaults for what it leaves out.

    No window unless `use_sliding_window`; then on the layers that `layer_types` names, or from `max_window_layers` on.
    """
    layers = whole_number(config, "num_hidden_layers", 1)
    types = config.get("layer_types")
    if types is not None and (
        not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= _LAYER_TYPES
    ):
        raise InputError(
            f"config.json: layer_types must hold {' or '.join(sorted(_LAYER_TYPES))} for each of the {layers} layers."
        )
    if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return (None,) * layers
    window = whole_number(config, "sliding_window", 4096)
    if types is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = 0 if config.get("max_window_layers") == 0 else whole_number(config, "max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(layers))
