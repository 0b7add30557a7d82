"""What it takes to prepare a model on this machine: memory, disk and time of merging, quantizing and building, before any of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel

from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.json_file import read_json
from qtk.engines.forecast import (
    ModelSize,
    QuantizationWork,
    Rates,
    StepForecast,
    build_forecast,
    measured_rates,
    merge_forecast,
    quantize_forecast,
)
from qtk.engines.preparation_options import PreparationOptions
from qtk.errors import InputError
from qtk.models.registry import spec_from_config
from qtk.quantization.model_weights import ModelWeights


class Preparation(BaseModel):
    """The steps in their order, and the rates that their times follow from."""

    model: str
    steps: list[StepForecast]
    rates: Rates
    free_disk: int

    @property
    def needed_disk(self) -> int:
        """Bytes of the disk that the steps take at most, their results left where they are."""
        steps = self.steps
        return max(sum(s.written for s in steps[: i + 1]) + step.scratch for i, step in enumerate(steps))


def plan_preparation(
    model_dir: Path | str, options: PreparationOptions, rates: Callable[[Path], Rates] | None = None
) -> Preparation:
    """Predicts the steps for a model directory or an id of the hub; config.json is enough. rates: measures the machine (None:
    `measured_rates`). MachineError where `memory` is too little for quantize; InputError for a directory without config.json, and
    where the weights that it holds are not those of the config, or not whole."""
    directory = model_directory(model_dir, "config")
    config = read_json(directory / "config.json")
    if not config:
        raise InputError(f"{directory} has no config.json.")
    spec = spec_from_config(config, str(directory / "config.json"))
    if any(directory.glob("*.safetensors*")):
        with closing(ModelWeights.open(directory).checkpoint):
            pass  # hours of work end at a shard that is missing or cut off
    place = Path.cwd()
    found = (rates or measured_rates)(place)
    model = ModelSize.of(spec)
    work = QuantizationWork(
        "gptq", options.effort, options.samples, min(options.seq_len or 2048, spec.max_positions), options.memory
    )
    steps = [
        merge_forecast(model, options.rank, found),
        quantize_forecast(model, work, found),
        build_forecast(model, found),
    ]
    free = os.statvfs(place)
    return Preparation(model=directory.name, steps=steps, rates=found, free_disk=free.f_bavail * free.f_frsize)
