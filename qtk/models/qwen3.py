"""Qwen3 (dense): RMS norms on each head of q and k, no bias unless `attention_bias`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import ModelSpec, layer_windows, read_spec


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Qwen3ForCausalLM. Its head size is 128 where config.json gives none."""
    windowed = dict(config) if config.get("use_sliding_window") else {**config, "sliding_window": None}
    bias = bool(config.get("attention_bias", False))
    return read_spec(
        {**config, "head_dim": config.get("head_dim") or 128},
        architecture="Qwen3ForCausalLM",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        windows=layer_windows(windowed),
    )
