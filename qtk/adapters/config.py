"""adapter_config.json: what is read of it, and the kinds of adapter that are refused by name.

The fields are peft's LoraConfig. What is refused either changed the base when it was initialized (so that adding the
update to the original base gives another model than was trained), or cannot be expressed as a sum with the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtk.bounded.files import read_bounded
from qtk.bounded.programs import matches, require_pattern
from qtk.checkpoint.json_file import parse_json
from qtk.errors import InputError, listing

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# init_lora_weights whose initialization took something out of the base weights, by lower-case prefix.
_CHANGED_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
# Initializations that leave the base alone: true/false are the default and the random one.
_KEPT_BASE = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# Fields that turn a LoRA into something that this merge does not express, and what they are called.
_NOT_HANDLED = {
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA, which acts on some tokens only and cannot be merged",
    "lora_bias": "lora_bias, a bias on the low-rank factors",
    "use_qalora": "QA-LoRA",
    "target_parameters": "target_parameters",
    "layer_replication": "layer_replication, which changes the number of layers",
    "megatron_config": "Megatron's parallel layers",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA, which changes the base weights",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}


class AdapterConfig(BaseModel):
    """The part of adapter_config.json that decides what is merged where; peft's names and defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    r: int = Field(8, gt=0)
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    ensure_weight_tying: bool = False
    base_model_name_or_path: str | None = None

    @property
    def kind(self) -> str:
        """DoRA, rsLoRA, LoRA, or DoRA with rank-stabilized scaling: for people."""
        return ("rs" if self.use_rslora else "") + ("DoRA" if self.use_dora else "LoRA")

    def rank(self, module: str) -> int:
        """The rank of a module's update."""
        return _pattern_value(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """The alpha of a module's update."""
        return _pattern_value(self.alpha_pattern, module, self.lora_alpha)


def read_config(directory: Path) -> AdapterConfig:
    """The config of an adapter directory. InputError when there is none, when it is malformed, or for a refused kind."""
    path = directory / CONFIG_NAME
    try:
        raw = parse_json(read_bounded(path), path)
    except FileNotFoundError:
        is_model = " It is a model directory, not an adapter." if (directory / "config.json").is_file() else ""
        raise InputError(f"{directory} has no {CONFIG_NAME}, so it is not an adapter directory.{is_model}") from None
    _refuse_kinds(raw, path)
    try:
        config = AdapterConfig.model_validate({key: value for key, value in raw.items() if value is not None})
        _require_regexes(config)
    except (ValidationError, InputError) as error:
        lines = (
            [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            if isinstance(error, ValidationError)
            else [str(error)]
        )
        raise InputError(f"{path} is malformed:\n{listing(lines)}") from None
    return config


def _refuse_kinds(raw: dict[str, Any], path: Path) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise InputError(
            f"{path}: peft_type is {kind!r}. qtk merges LORA adapters (LoRA, rsLoRA, DoRA), no other kind."
        )
    complaints = []
    # Absent, null and false all mean that A and B alone were drawn, whichever way: the base is what it was.
    init = str(raw.get("init_lora_weights") or False).lower().replace("-", "_")
    changed = next((name for prefix, name in _CHANGED_BASE.items() if init.startswith(prefix)), None)
    if changed:
        complaints.append(
            f"init_lora_weights is {raw['init_lora_weights']!r}: {changed} changed the base weights when training began, "
            "so the update does not belong to the original base. Save it as a plain LoRA with peft "
            "(save_pretrained with path_initial_model_for_weight_conversion), or merge it where the changed base is."
        )
    elif init not in _KEPT_BASE:
        complaints.append(f"init_lora_weights is {raw['init_lora_weights']!r}, which qtk does not know")
    complaints += [f"{field}: {name} is not handled" for field, name in _NOT_HANDLED.items() if raw.get(field)]
    if complaints:
        raise InputError(f"{path}: this adapter cannot be merged:\n{listing(complaints)}")


def _require_regexes(config: AdapterConfig) -> None:
    patterns = [*config.rank_pattern, *config.alpha_pattern, *config.modules_to_save]
    for single in (config.target_modules, config.exclude_modules):
        patterns += [single] if isinstance(single, str) else []
    layers = config.layers_pattern or ()
    patterns += [layers] if isinstance(layers, str) else layers
    for pattern in patterns:
        require_pattern(pattern)


def _pattern_value(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's name, or its tail after a dot; peft's rule."""
    for pattern, value in patterns.items():
        if matches(pattern, module, r"(.*\.)?({})$"):
            return value
    return default
