"""What a merge must know of the base beside its tensors: embedding, head, whether they are tied, and the linears."""

from __future__ import annotations

from dataclasses import dataclass

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.models.registry import ARCHITECTURES, architecture, differs_from_embedding, model_spec
from qtk.models.spec import EMBEDDING, LM_HEAD, LM_HEAD_MODULE, whole_number

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
        stated = base.config["quantization_config"]
        method = stated.get("quant_method", "unknown method") if isinstance(stated, dict) else stated
        raise InputError(
            f"{base.path} is quantized ({method}). An adapter is merged into the float model, which is quantized after."
        )
    name = architecture(base.config)
    if name == _GPT2:
        layers = range(whole_number(base.config, "n_layer", 12))
        tied = bool(base.config.get("tie_word_embeddings", True))
        if tied and differs_from_embedding(base, "lm_head.weight", "transformer.wte.weight"):
            base.correct_config(tie_word_embeddings=False)
            tied = False
        layout = BaseLayout(
            embedding="transformer.wte",
            lm_head=LM_HEAD_MODULE,
            tied=tied,
            linears=frozenset(f"transformer.h.{i}.{name}" for i in layers for name in _GPT2_LINEARS),
            transposed=True,
            default_targets=("c_attn",),
        )
    elif name is not None and name not in ARCHITECTURES:
        raise InputError(
            f"{base.path / 'config.json'}: architecture {name!r} is not known. "
            f"qtk merges into {', '.join([*ARCHITECTURES, _GPT2])}."
        )
    else:
        spec = model_spec(base)
        base.require_tensors(spec.all_tensors())
        layout = BaseLayout(
            embedding=EMBEDDING.removesuffix(".weight"),
            lm_head=LM_HEAD.removesuffix(".weight"),
            tied=spec.tie_word_embeddings,
            linears=frozenset(name for name, _ in spec.all_linears()),
            transposed=False,
            default_targets=("q_proj", "v_proj"),
        )
    for module in (layout.embedding,) if layout.tied else (layout.embedding, layout.lm_head):
        base.info(f"{module}.weight")  # an error where the base has none
    return layout
