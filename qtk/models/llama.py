"""Llama: also CodeLlama, DeepSeek-Coder (linear rope scaling) and SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import ModelSpec, read_spec


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a LlamaForCausalLM; `attention_bias` puts a bias on q, k, v and o, `mlp_bias` on the MLP."""
    bias = bool(config.get("attention_bias", False))
    return read_spec(
        config,
        architecture="LlamaForCausalLM",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
