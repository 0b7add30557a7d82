"""Qwen2 and Qwen2.5: a bias on q, k and v; a sliding window only where `use_sliding_window` is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import QWEN_DEFAULTS, ModelSpec, layer_windows, read_spec


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Qwen2ForCausalLM."""
    config = {**QWEN_DEFAULTS, **config}
    return read_spec(config, architecture="Qwen2ForCausalLM", qkv_bias=True, windows=layer_windows(config))
