"""What a merge must know of the base beside its tensors: embedding, head, whether they are tied, and the linears."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.models.registry import ARCHITECTURES, model_spec
from qtk.models.spec import EMBEDDING, LM_HEAD

# GPT-2 cannot be quantized by qtk, but its adapters are merged: its weights are stored [in, out] (fan_in_fan_out).
_GPT2 = "GPT2LMHeadModel"
_GPT2_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class BaseLayout:
    """Module names of the base. `tied`: the head is the embedding. `linears`: the decoder's, without the head.

    `transposed`: the linears' weights are stored [in, out]. `default_targets`: what peft adapts when an adapter's
    config names no target_modules.
    """

    embedding: str
    lm_head: str
    tied: bool
    linears: frozenset[str]
    transposed: bool
    default_targets: tuple[str, ...]


def base_layout(base: Checkpoint) -> BaseLayout:
    """The layout of a float checkpoint. InputError for an unknown architecture, a quantized base, or missing tensors."""
    if "quantization_config" in base.config:
        method = (base.config["quantization_config"] or {}).get("quant_method", "unknown method")
        raise InputError(
            f"{base.path} is quantized ({method}). An adapter is merged into the float model, which is quantized after."
        )
    names = base.config.get("architectures") or []
    if names[:1] == [_GPT2]:
        layers = range(int(base.config.get("n_layer", 12)))
        layout = BaseLayout(
            embedding="transformer.wte",
            lm_head="lm_head",
            tied=bool(base.config.get("tie_word_embeddings", True)),
            linears=frozenset(f"transformer.h.{i}.{name}" for i in layers for name in _GPT2_LINEARS),
            transposed=True,
            default_targets=("c_attn",),
        )
    elif names[:1] and names[0] not in ARCHITECTURES:
        raise InputError(
            f"{base.path / 'config.json'}: architecture {names[0]!r} is not known. "
            f"qtk merges into {', '.join([*ARCHITECTURES, _GPT2])}."
        )
    else:
        spec = model_spec(base)
        base.require_shapes(spec.all_tensors())
        layout = BaseLayout(
            embedding=EMBEDDING.removesuffix(".weight"),
            lm_head=LM_HEAD.removesuffix(".weight"),
            tied=spec.tie_word_embeddings,
            linears=frozenset(name for name, _ in spec.all_linears()),
            transposed=False,
            default_targets=("q_proj", "v_proj"),
        )
    for name in (layout.embedding,) if layout.tied else (layout.embedding, layout.lm_head):
        base.info(f"{name}.weight")  # an error where the base has none
    return layout if not layout.tied or _stored_head_agrees(base, layout) else _untied(layout)


def _stored_head_agrees(base: Checkpoint, layout: BaseLayout) -> bool:
    """Whether a tied checkpoint that holds a head all the same holds the embedding in it; loaders untie it otherwise."""
    head, embedding = f"{layout.lm_head}.weight", f"{layout.embedding}.weight"
    return head not in base or same_rows(base, head, base, embedding)


def _untied(layout: BaseLayout) -> BaseLayout:
    return BaseLayout(**{**layout.__dict__, "tied": False})


def same_rows(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Whether two tensors are equal, read a slice of rows at a time."""
    if one.info(name).shape != other.info(other_name).shape:
        return False
    rows = one.info(name).shape[0]
    step = max(1, (1 << 22) // max(1, one.info(name).nbytes // max(rows, 1)))
    return all(
        torch.equal(one.rows(name, i, min(i + step, rows)), other.rows(other_name, i, min(i + step, rows)))
        for i in range(0, rows, step)
    )
