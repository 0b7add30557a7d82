"""Checkpoints of a training: adapter, optimizer and what was decided so far, so that a resumed run has the same bits.

Order of the data, learning rate and dropout follow from the seed and the step, so they need not be kept. A checkpoint is a
directory of its own; `state.json`, which names it, is written last, so that a kill at any time leaves the one before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from qtk.checkpoint.atomic import write_atomic
from qtk.finetuning.coba import CobaMemory
from qtk.finetuning.lora_model import read_adapter, write_adapter
from qtk.finetuning.sharding import spread_like, whole
from qtk.finetuning.unfinished import STATE_NAME, WORK

_OPTIMIZER = "optimizer.safetensors"
_BEST = "best"


class TrainingState(BaseModel):
    """Where a training is. step: updates done. before: held-back loss of the base. best: the lowest since, of `best_step`.
    stall: evaluations since then. tokens, seconds: read and taken, over all sessions. test: see `FinetuneReport`."""

    model_config = ConfigDict(frozen=True)

    step: int = 0
    before: float | None = None
    before_by_task: tuple[float | None, ...] = ()
    best: float | None = None
    best_by_task: tuple[float | None, ...] = ()
    best_step: int = 0
    stall: int = 0
    tokens: int = 0
    seconds: float = 0.0
    coba: CobaMemory | None = None


class Checkpoints:
    """The checkpoints of the training whose unfinished directory is `partial`."""

    def __init__(self, partial: Path) -> None:
        self.directory = partial / WORK

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.directory / f"checkpoint-{step}"

    def read(self) -> TrainingState | None:
        """The state of the last checkpoint; None where there is none."""
        path = self.directory / STATE_NAME
        return TrainingState.model_validate_json(path.read_bytes()) if path.is_file() else None

    def save(
        self,
        state: TrainingState,
        model: Any,
        adapter: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
    ) -> None:
        """Writes a checkpoint, and removes the one before when it stands. OSError for a full disk: the one before stays."""
        import safetensors.torch

        place = self.path(state.step)
        try:
            write_adapter(model, adapter, place)
            write_atomic(place / _OPTIMIZER, safetensors.torch.save(dict(optimizer)))
            write_atomic(self.directory / STATE_NAME, state.model_dump_json())
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        for other in self.directory.glob("checkpoint-*"):
            if other != place:
                shutil.rmtree(other)

    def load(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(adapter, optimizer) of the checkpoint of a step."""
        import safetensors.torch

        place = self.path(step)
        return read_adapter(place), dict(safetensors.torch.load((place / _OPTIMIZER).read_bytes()))

    def save_best(self, model: Any, adapter: Mapping[str, torch.Tensor]) -> None:
        """Keeps the adapter with the lowest held-back loss so far."""
        write_adapter(model, adapter, self.directory / _BEST)

    def load_best(self) -> dict[str, torch.Tensor]:
        return read_adapter(self.directory / _BEST)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as tensors by name: "NUMBER.exp_avg" and so on, numbers in the order of the parameters. All devices call it
    together."""
    states = optimizer.state_dict()["state"]
    # Sorted, because parts are put together by all devices in the same order, and a file is read in any order.
    return {
        f"{number}.{name}": whole(value.detach()).to("cpu", copy=True).contiguous()
        for number, values in sorted(states.items())
        for name, value in sorted(values.items())
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts them back into an optimizer of the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        state = (
            spread_like(value, parameter) if value.shape == parameter.shape else value
        )  # the count of steps is a scalar
        states.setdefault(int(number), {})[name] = state
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
