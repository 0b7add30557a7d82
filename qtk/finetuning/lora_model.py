"""The base with an adapter on it (peft), and the adapter's weights by name: to save, to load, to choose."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qtk.adapters.config import CONFIG_NAME, WEIGHTS_NAME
from qtk.checkpoint.atomic import write_atomic
from qtk.errors import InputError, listing
from qtk.finetuning.options import ALL_LINEAR, FinetuneOptions
from qtk.finetuning.sharding import spread_like, whole
from qtk.models.spec import ModelSpec


def require_targets(spec: ModelSpec, options: FinetuneOptions) -> None:
    """InputError for target modules that the model does not have, and naming every linear that is smaller than the rank."""
    linears = {linear.name.rpartition(".")[2]: linear for linear in spec.linears()}
    unknown = [name for name in options.target_modules if name not in linears]
    if unknown:
        raise InputError(
            f"--target-modules {', '.join(unknown)}: the model has no such linear. It has {', '.join(linears)}."
        )
    small = [
        f"{name} has {linear.out_features} outputs and {linear.in_features} inputs"
        for name, linear in linears.items()
        if name in (options.target_modules or linears) and min(linear.out_features, linear.in_features) < options.rank
    ]
    if small:
        raise InputError(f"--rank {options.rank} is larger than a layer that it adapts:\n{listing(small)}")


def add_adapter(base: Any, options: FinetuneOptions, base_name: str) -> Any:
    """The base with a new adapter, a peft.PeftModel: its factors are float32 and learn, the base does not. Which numbers it
    starts from follows from the seed."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft divides it by the rank: a float serves
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules) or ALL_LINEAR,
        use_rslora=options.rslora,
        use_dora=options.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's use of transformers, which is not the user's matter
        model = get_peft_model(base, config)
    kept = model.peft_config["default"]
    kept.base_model_name_or_path, kept.inference_mode = base_name, True
    if options.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # newer releases have another name for it, older ones this one only
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def learning_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """What learns, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, by the names that peft gives them in a file. All devices call it together."""
    state = _live_tensors(model)
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def load_adapter_tensors(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts an adapter's tensors back into the model."""
    from peft import set_peft_model_state_dict

    live = _live_tensors(model)
    result: Any = set_peft_model_state_dict(
        model, {name: spread_like(value, live[name]) for name, value in tensors.items()}
    )
    assert not result.unexpected_keys, result.unexpected_keys


def _live_tensors(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def write_adapter(model: Any, tensors: Mapping[str, torch.Tensor], directory: Path) -> None:
    """An adapter directory as peft loads it; each file appears when it is complete."""
    import safetensors.torch

    directory.mkdir(exist_ok=True)
    write_atomic(directory / WEIGHTS_NAME, safetensors.torch.save(dict(tensors), metadata={"format": "pt"}))
    write_atomic(directory / CONFIG_NAME, _config_json(model))


def _config_json(model: Any) -> str:
    import json

    config = model.peft_config["default"].to_dict()
    # A set has another order in every process.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def read_adapter(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors that `write_adapter` wrote."""
    import safetensors.torch

    return dict(safetensors.torch.load((directory / WEIGHTS_NAME).read_bytes()))
