"""The architectures that qtk knows. Adding one: a file with `spec(config)`, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.models import llama, mistral, qwen2, qwen3
from qtk.models.spec import EMBEDDING, LM_HEAD, ModelSpec

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    "LlamaForCausalLM": llama.spec,
    "MistralForCausalLM": mistral.spec,
    "Qwen2ForCausalLM": qwen2.spec,
    "Qwen3ForCausalLM": qwen3.spec,
}


def architecture(config: Mapping[str, Any]) -> str | None:
    """The first of config.json's architectures; None where it names none."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) else None


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a checkpoint's model. InputError, listing the known ones, for an unknown architecture.

    A config that ties the head to the embedding, beside a stored head that differs from it, is corrected in the
    checkpoint: transformers leaves such a pair untied, and every directory made from it must say so.
    """
    try:
        spec = spec_from_config(checkpoint.config, "config.json")
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    if spec.tie_word_embeddings and differs_from_embedding(checkpoint, LM_HEAD, EMBEDDING):
        checkpoint.correct_config(tie_word_embeddings=False)
        return replace(spec, tie_word_embeddings=False)
    return spec


def differs_from_embedding(checkpoint: Checkpoint, head: str, embedding: str) -> bool:
    """Whether a head is stored that differs from the stored embedding. Both are read in pieces."""
    if head not in checkpoint or embedding not in checkpoint:
        return False
    stored, table = checkpoint.info(head), checkpoint.info(embedding)
    if (stored.dtype_name, stored.shape) != (table.dtype_name, table.shape):
        return True
    pieces = (checkpoint.pieces(name) for name in (head, embedding))
    return any(head_piece != piece for head_piece, piece in zip(*pieces, strict=True))


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The spec that a parsed config.json describes; `where` names it in errors."""
    name = architecture(config)
    if name not in ARCHITECTURES:
        raise InputError(f"{where}: architecture {name!r} is not known. qtk knows {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name](config)
