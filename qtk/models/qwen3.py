"""Qwen3 (dense): RMS norms on each head of q and k, no bias unless `attention_bias`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import QWEN_DEFAULTS, ModelSpec, layer_windows, read_spec


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Qwen3ForCausalLM. Its head size is 128 where config.json gives none."""
    config = {**QWEN_DEFAULTS, **config}
    bias = bool(config.get("attention_bias", False))
    return read_spec(
        {"head_dim": 128, **config},
        architecture="Qwen3ForCausalLM",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        windows=layer_windows(config),
    )
