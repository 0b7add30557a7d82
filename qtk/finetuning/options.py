"""The options of `qtk finetune`: one frozen model for the command line, recipes and manifests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ALL_LINEAR = "all-linear"


class FinetuneOptions(BaseModel):
    """How an adapter is trained. Where MFTCoder has an option of the same meaning, docs/finetuning.md names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...] = Field(
        (),
        description="A task: a JSONL file, a folder of them, or python-stdlib (modules of the standard library as text). "
        "Repeatable.",
    )
    task_weight: tuple[float, ...] = Field(
        (), description="Weight of a task in case3 and case4, once per task in their order; 1 where none is given."
    )
    data_split: str = Field(
        "95,5,0",
        description="Shares of train, held-back and test rows of each task. The test rows are read once, at the end.",
    )
    chat_format: Literal["none", "model", "codefuse"] = Field(
        "model",
        description="How conversations are rendered: none (plain text, all of it learnt), by the model's chat template, or by "
        "CodeFuse's (<s>human, <s>bot). The answers are learnt, each with its end token.",
    )
    seq_len: int | None = Field(
        None,
        ge=8,
        description="Tokens in a row; longer rows are dropped (default: 4096, or the model's context where that is shorter).",
    )
    padding: Literal["dynamic", "pack"] = Field(
        "dynamic",
        description="dynamic: each batch is as long as its longest row; pack: rows share a line of --seq-len.",
    )
    pack_across: bool = Field(
        False, description="Let the rows of a pack see those before them, as MFTCoder does. They do not otherwise."
    )
    weighted_loss: Literal["case1", "case2", "case3", "case4", "coba"] = Field(
        "case3",
        description="case1: mean over tokens; case2: over rows of their means; case3: over tasks of their token means; case4: "
        "over tasks of case2; coba: case3 with weights that follow how each task converges.",
    )
    coba_warmup_steps: int = Field(100, ge=1, description="CoBa: steps with equal weights.")
    coba_history_length: int = Field(200, ge=2, description="CoBa: the latest losses whose trend counts.")
    coba_tau: float = Field(5.0, gt=0, description="CoBa: how sharply a task that diverges is noticed.")
    coba_update_interval: int = Field(1, ge=1, description="CoBa: steps between two looks at held-back rows.")
    coba_sample_valid_num: int = Field(1, ge=1, description="CoBa: batches of held-back rows in a look.")
    qlora: bool = Field(
        False,
        description="QLoRA: hold the base in NF4 with double quantization. A base that is INT4 already is held as it is.",
    )
    rank: int = Field(32, ge=1, description="Rank of the adapter.")
    alpha: float = Field(32, gt=0, description="LoRA's alpha: the update counts alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout in front of the adapter.")
    rslora: bool = Field(False, description="rsLoRA: the update counts alpha / sqrt(rank).")
    dora: bool = Field(False, description="DoRA: magnitude and direction are trained apart.")
    target_modules: tuple[str, ...] = Field(
        (), description="Name of the linears to adapt, such as q_proj. Repeatable; default: all but lm_head."
    )
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate after the warm-up.")
    min_lr: float = Field(1e-5, ge=0, description="Floor of the learning rate after the warm-up.")
    warmup: float = Field(0.05, ge=0, description="Warm-up: a share of all steps (below 1), or their number.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient of a step; 0: no limit.")
    epochs: int = Field(4, ge=1, description="How often every row is read.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after so many steps, which the learning rate then follows."
    )
    batch_size: int = Field(16, ge=1, description="Rows, or packs, of a step, on all devices together.")
    micro_batch: int = Field(
        2, ge=1, description="Rows, or packs, in a forward pass of one device. A matter of memory, not of results."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    evaluate_every: int = Field(100, ge=1, description="Steps between two evaluations on the held-back rows.")
    evaluation_rows: int | None = Field(
        None, ge=1, description="Held-back rows of each task that an evaluation reads. Default: all."
    )
    early_stopping: int = Field(
        5, ge=0, description="Stop after so many evaluations in a row that are worse than the best; 0: never."
    )
    checkpoint_every: int = Field(100, ge=1, description="Steps between two checkpoints, from which --resume goes on.")
    seed: int = Field(0, ge=0, description="Seed of everything random: split, order, the adapter's start, dropout.")
    threads: int | None = Field(
        None, ge=1, description="Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."
    )
    shard: bool = Field(
        False, description="Spread the float weights over all devices (FSDP), for a base that does not fit one of them."
    )
    device: str = Field("auto", description="auto (a GPU when there is one), cpu, cuda, or cuda:N.")

    @field_validator("data_split")
    @classmethod
    def _readable_split(cls, text: str) -> str:
        split_shares(text)
        return text

    @model_validator(mode="after")
    def _agree(self) -> FinetuneOptions:
        if self.task_weight and len(self.task_weight) != len(self.data):
            raise ValueError(f"task_weight is given {len(self.task_weight)} times for {len(self.data)} tasks")
        if any(not 0 < weight < float("inf") for weight in self.task_weight):
            raise ValueError("a task_weight must be a finite number above 0")
        if self.pack_across and self.padding != "pack":
            raise ValueError("pack_across needs padding pack")
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr {self.min_lr} is above the learning rate {self.learning_rate}")
        if self.weighted_loss == "coba" and not split_shares(self.data_split)[1]:
            raise ValueError("coba needs held-back rows: give them a share in data_split")
        return self


def split_shares(text: str) -> tuple[float, float, float]:
    """(train, valid, test) as shares that sum to 1, from "95,5,0" or "95/5": what is left out is 0.

    ValueError for what is not two or three finite numbers, for negative ones, and for a training share of 0.
    """
    try:
        numbers = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    if not (2 <= len(numbers) <= 3 and min(numbers) >= 0 and total < float("inf") and numbers[0] > 0):
        raise ValueError(f"{text!r}: give the shares of train, held-back and test rows, such as 95,5,0")
    train, valid, test = (number / total for number in (*numbers, 0.0)[:3])
    return train, valid, test
