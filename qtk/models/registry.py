"""The architectures that qtk knows. Adding one: a file with `spec(config)`, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.models import llama, mistral, qwen2, qwen3
from qtk.models.spec import ModelSpec

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    "LlamaForCausalLM": llama.spec,
    "MistralForCausalLM": mistral.spec,
    "Qwen2ForCausalLM": qwen2.spec,
    "Qwen3ForCausalLM": qwen3.spec,
}


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a checkpoint's model. InputError, listing the known ones, for an unknown architecture."""
    try:
        return spec_from_config(checkpoint.config, "config.json")
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The spec that a parsed config.json describes; `where` names it in errors."""
    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise InputError(f"{where}: architecture {name!r} is not known. qtk knows {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name](config)
