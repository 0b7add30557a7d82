"""Options of `qtk bench accuracy`: what is scored, and how a model is asked. Light to import for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.engines.sessions.decoding import Decoding

# Whose rules make programs of answers. In codefuse-evaluation they depend on what has made the answers: what is stored
# already is put together as it is; each model has a processor of its own before that.
Rules = Literal["qtk", "codefuse:stored", "codefuse:13b", "codefuse:llama34b", "bigcode"]
ChatFormat = Literal["none", "model", "codefuse"]


def harness_of(rules: Rules) -> Literal["qtk", "codefuse", "bigcode"]:
    """The harness that the rules belong to."""
    return rules.partition(":")[0]  # type: ignore[return-value]


class AccuracyOptions(BaseModel):
    """What `qtk bench accuracy` scores, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: tuple[str, ...] = Field(
        ("humaneval",),
        min_length=1,
        description="NAME (see `qtk list suites`), NAME:python,java, lm-eval:TASK or a YAML file; repeatable.",
        json_schema_extra={"names": "suites"},
    )
    data: Path | None = Field(None, description="Folder (or file) of the tasks; default: the variable QTK_DATA.")
    hub: bool = Field(False, description="Download sets that are not in --data from the Hugging Face hub.")
    limit: int | None = Field(
        None, ge=1, description="Only N tasks of each language or set: the first, or of questions a fixed sample."
    )
    compat: Literal["none", "codefuse", "codefuse:13b", "codefuse:llama34b", "bigcode"] = Field(
        "none",
        description="Make programs by another harness's rules. codefuse:NAME first puts answers through that "
        "harness's processor for a model; codefuse alone is for answers that have been through one.",
    )
    canaries: int = Field(
        0,
        ge=0,
        description="Also score the answers to N tasks of each language against tests that contradict themselves: whatever "
        "passes has forged it.",
    )
    canary_seed: int = Field(0, description="Seed of the choice of canaries.")
    k: tuple[int, ...] = Field((1,), min_length=1, description="pass@k to report; repeatable.")
    sandbox: Literal["auto", "namespaces", "bubblewrap", "user-namespaces", "landlock", "rlimits"] = Field(
        "auto", description="The sandbox that programs run in; auto takes the strongest that works here."
    )
    allow_unsandboxed: bool = Field(False, description="Run programs with limits alone where nothing better works.")
    workers: int | None = Field(None, ge=1, description="Programs at once. Default: the usable cores.")

    @field_validator("k")
    @classmethod
    def _at_least_one(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1:
            raise ValueError(f"pass@k needs a k of 1 or more, not {min(ks)}")
        return ks

    @property
    def rules(self) -> Rules:
        if self.compat == "codefuse":
            return "codefuse:stored"
        return "qtk" if self.compat == "none" else self.compat


class ModelOptions(BaseModel):
    """How a model is asked for its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_format: ChatFormat = Field(
        "none",
        description="Ask for a plain completion, or as a user's message in the model's chat template or CodeFuse's.",
        json_schema_extra={"was": "prompt", "was_values": {"plain": "none", "chat": "model"}},
    )
    max_new_tokens: int = Field(512, ge=1, description="Most new tokens an answer.")
    samples: int = Field(1, ge=1, description="Answers a task; more than one needs --temperature.")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the smallest set of tokens with this probability.")
    seed: int = Field(0, description="Seed of the draws.")
    batch_size: int | None = Field(None, ge=1, description="Rows at once. Default: what the engine takes.")
    threads: int | None = Field(
        None, ge=1, description="Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."
    )

    def answer_settings(self) -> dict[str, Any]:
        """What decides the answers: neither the threads nor the rows at once do, because each row has a seed of its own."""
        return self.model_dump(mode="json", exclude={"threads", "batch_size"})

    def decoding(self, seeds: tuple[int, ...]) -> Decoding:
        """How each token is chosen. seeds: one for each row of a batch."""
        return Decoding(temperature=self.temperature, top_p=self.top_p, seed=seeds)
