"""The method of a quantization: the one asked for, or the better of GPTQ and AWQ on rows held back (`--method auto`)."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.errors import GateFailed
from qtk.peak_memory import PeakMemory
from qtk.quantization.checkpoint_run import QuantizationRun, QuantizationTask, RunRecord
from qtk.quantization.probe import PROBE_NAME
from qtk.quantization.resume import read_finished, remove_work, save_finished
from qtk.quantization.unfinished import WORK

_COMPARED = ("gptq", "awq")
_CHOSEN = "chosen"


class MethodChoice(BaseModel):
    """The run that counts, and the divergence of each method that was compared (empty where none was)."""

    model_config = ConfigDict(frozen=True)

    run: RunRecord
    held_back_kl: dict[str, float | None]


def methods_tried(method: str) -> int:
    """How many methods quantize the whole model."""
    return len(_COMPARED) if method == "auto" else 1


def quantize_by(method: str, task: QuantizationTask, work: Path, memory: PeakMemory) -> MethodChoice:
    """Quantizes into the directory `work` by one method, or by the better one for "auto"; a run that stopped there goes on."""
    if method == "auto":
        return _better(task, work, memory)
    return MethodChoice(run=QuantizationRun(task, method, work, memory).quantize(), held_back_kl={})


def _better(task: QuantizationTask, work: Path, memory: PeakMemory) -> MethodChoice:
    """GPTQ and AWQ, each in a directory of its own; the one nearer to the float model on the rows held back is moved
    into `work`.

    Each step may be stopped and done again: a method that is finished is recorded, then the choice, and only then
    anything is moved or deleted. Raises GateFailed when neither has a KL that is a number.
    """
    recorded = read_finished(work, _CHOSEN)
    if recorded is None:
        choice = _choice({method: _finished(method, task, work, memory) for method in _COMPARED})
        save_finished(work, _CHOSEN, choice.model_dump(mode="json"))
    else:
        choice = MethodChoice.model_validate(recorded)
    if (work / choice.run.method).is_dir():
        move_up(work / choice.run.method)
    for method in _COMPARED:
        shutil.rmtree(work / method, ignore_errors=True)
    return choice


def _choice(runs: dict[str, RunRecord]) -> MethodChoice:
    """The better run, with the time of both and the memory of the larger one."""
    kl = {method: run.held_back_kl for method, run in runs.items()}
    both = {
        "seconds": sum(run.seconds for run in runs.values()),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs.values()),
    }
    return MethodChoice(run=runs[nearest(kl)].model_copy(update=both), held_back_kl=kl)


def _finished(method: str, task: QuantizationTask, work: Path, memory: PeakMemory) -> RunRecord:
    """The recorded run of an earlier, interrupted session if there is one; otherwise the method is run now."""
    place = work / method
    if (recorded := read_finished(work, method)) is not None:
        return RunRecord.model_validate(recorded)
    place.mkdir(exist_ok=True)
    run = QuantizationRun(task, method, place, memory).quantize()
    flush(place)  # the record must not reach the disk before the files that it speaks of
    save_finished(work, method, run.model_dump(mode="json"))
    return run


def nearest(kl: dict[str, float | None]) -> str:
    """The method of the least KL; a method whose KL is not a number never wins. GateFailed when none has a number."""
    numbers = {method: value for method, value in kl.items() if value is not None and math.isfinite(value)}
    if not numbers:
        raise GateFailed(
            f"Neither {' nor '.join(kl)} gave a model whose divergence on the held-back rows is a number. Look for NaN "
            "or huge values in the model (`qtk inspect`), or choose a --method."
        )
    return min(numbers, key=lambda method: numbers[method])


def move_up(directory: Path) -> None:
    """Moves the contents of `directory` into its parent: of the state of a finished run the record of the probe only, against
    which the files will be read back."""
    if (record := directory / WORK / PROBE_NAME).is_file():
        record.replace(directory.parent / WORK / PROBE_NAME)
    remove_work(directory)
    for path in sorted(directory.iterdir()):
        path.rename(directory.parent / path.name)


def flush(directory: Path) -> None:
    """Makes the files in `directory` reach the disk."""
    for path in directory.rglob("*"):
        if path.is_file() and WORK not in path.parts:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
