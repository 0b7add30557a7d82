"""Mistral: Llama with a sliding attention window on every layer where config.json names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtk.models.spec import ModelSpec, layer_windows, read_spec


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a MistralForCausalLM."""
    return read_spec(config, architecture="MistralForCausalLM", windows=layer_windows(config))
