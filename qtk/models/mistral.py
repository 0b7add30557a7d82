"""Mistral: Llama with a sliding attention window on every layer where config.json names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import ModelSpec, read_spec, whole_number

_DEFAULTS = {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072}


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a MistralForCausalLM. Fields that are left out have transformers' defaults: a window of 4096 tokens,
    8 key/value heads; a window of null means none."""
    config = {**_DEFAULTS, **config}
    window = None if config["sliding_window"] is None else whole_number(config, "sliding_window", 4096)
    layers = whole_number(config, "num_hidden_layers", 1)
    return read_spec(config, architecture="MistralForCausalLM", windows=(window,) * layers)
