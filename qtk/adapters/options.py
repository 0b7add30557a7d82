"""What `qtk merge` is told: the options that the command line, the recipe and the manifest share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class MergeOptions(BaseModel):
    """How adapters are merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: tuple[float, ...] = Field(
        (), description="Factor of an adapter's update, once per adapter in their order; 1 where none is given."
    )
    qlora_base: Literal["auto", "nf4", "none"] = Field(
        "auto",
        description="nf4: merge onto the 4-bit rounded base that a QLoRA adapter was trained against, every linear but "
        "lm_head; none: onto the base as it is; auto: as the adapter says where qtk trained it, else none.",
    )
    tokenizer: Literal["auto", "base", "adapter"] = Field(
        "auto",
        description="Whose tokenizer files are carried; auto: the adapter's where it changes the vocabulary's size.",
    )
    any_base: bool = Field(
        False, description="Merge although the adapter names another base model. Shapes must agree all the same."
    )
    shard_gb: float = Field(5.0, gt=0, description="Largest size of one output file, in GB.")

    @field_validator("qlora_base", mode="before")
    @classmethod
    def _nothing_was_none(cls, value: object) -> object:
        return "auto" if value is None else value  # recipes and manifests of qtk 0.1
