"""The base model as transformers' module, filled linear by linear from a checkpoint, frozen, and held as the options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qtk.adapters.config import CONFIG_NAME
from qtk.adapters.trained_base import TrainedBase, fingerprint
from qtk.errors import InputError
from qtk.finetuning.frozen_linear import DeployedWeight, FrozenLinear, Nf4Weight, StoredWeight
from qtk.models.spec import LM_HEAD_MODULE
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear


@dataclass(frozen=True)
class BaseStorage:
    """How the base is held. dtype: of what is not in codes, and of every product."""

    dtype: torch.dtype
    device: torch.device
    nf4: bool


def open_base(directory: Path, *, nf4: bool) -> ModelWeights:
    """The base's weights, checked. InputError for a directory with an adapter beside the model, which other programs would
    add to it in silence, and for NF4 of a base that is quantized already."""
    if (directory / CONFIG_NAME).is_file():
        raise InputError(
            f"{directory} holds an adapter beside the model ({CONFIG_NAME}), which transformers would load into it. Merge it "
            "first (qtk merge), or give the base without it."
        )
    weights = ModelWeights.open(directory)
    if nf4 and weights.quantized:
        raise InputError(
            f"{directory} is quantized already and is held as it is. Leave out --qlora, or give the float model."
        )
    return weights


def describe_base(weights: ModelWeights, *, nf4: bool) -> TrainedBase:
    """What the adapter is to know of its base."""
    checkpoint = weights.checkpoint
    return TrainedBase(
        name=str(checkpoint.config.get("_name_or_path") or checkpoint.path.absolute().name),
        fingerprint=fingerprint(checkpoint),
        rounding="nf4" if nf4 else "deployed" if weights.quantized else "none",
        container="" if weights.format is None else weights.format.name,
    )


def load_base(weights: ModelWeights, storage: BaseStorage) -> Any:
    """The model, a transformers.PreTrainedModel that does not learn. At no time is more than one float linear in memory beside
    it. InputError naming a tensor with NaN or Inf."""
    model = _empty_model(weights)
    names = [name for name, _ in weights.spec.all_linears()]
    linears = set(names)
    with Progress("load the base", len(names), "linears") as progress:
        for name, module in list(model.named_modules()):
            if name in linears:
                _set_linear(model, name, module, weights, storage)
                progress.advance(1)
            else:
                _fill(module, name, weights, storage)
    if weights.spec.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.to(storage.device)


def _empty_model(weights: ModelWeights) -> Any:
    """The model without weights; its buffers, such as those of the rotary embedding, are real."""
    import accelerate
    import transformers

    config = {name: value for name, value in weights.checkpoint.config.items() if name != "quantization_config"}
    with accelerate.init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config), attn_implementation="sdpa", dtype=torch.float32
        )


def _set_linear(model: Any, name: str, module: torch.nn.Linear, weights: ModelWeights, storage: BaseStorage) -> None:
    weight, bias = weights.linear(name), weights.bias(name)
    stored: StoredWeight | None = None
    if isinstance(weight, QuantizedLinear):
        stored = DeployedWeight(weight)
    elif storage.nf4:
        stored = Nf4Weight(weight)
    if stored is not None:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, FrozenLinear(stored, bias, storage.dtype).to(storage.device))
    elif isinstance(weight, torch.Tensor):
        module.weight = _parameter(weight, storage)
        if bias is not None:
            module.bias = _parameter(bias, storage)


def _fill(module: torch.nn.Module, name: str, weights: ModelWeights, storage: BaseStorage) -> None:
    """Norms, the embedding, and a head of its own."""
    for kind, _ in list(module.named_parameters(recurse=False)):
        if name == LM_HEAD_MODULE:
            if weights.spec.tie_word_embeddings:
                continue
            value = weights.lm_head(storage.dtype)
        else:
            value = weights.checkpoint.tensor(f"{name}.{kind}", finite=True)
        setattr(module, kind, _parameter(value, storage))


def _parameter(value: torch.Tensor, storage: BaseStorage) -> torch.nn.Parameter:
    return torch.nn.Parameter(value.to(storage.device, storage.dtype), requires_grad=False)
