"""Runs of single methods with everything else alike, and the choice between them (`--method auto`)."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

from qtk.errors import GateFailed
from qtk.peak_memory import PeakMemory
from qtk.quantization.checkpoint_run import Outcome, QuantizationRun, QuantizationTask
from qtk.quantization.resume import WORK, read_finished, remove_work, save_finished

_COMPARED = ("gptq", "awq")
_CHOSEN = "chosen"


class MethodRuns:
    """One task, whose method may vary."""

    def __init__(self, task: QuantizationTask, memory: PeakMemory) -> None:
        self.task, self.memory = task, memory
        self.held_back_kl: dict[str, float] = {}

    def run(self, method: str, work: Path) -> Outcome:
        """One method into the directory `work`; a state left there is taken up."""
        task = replace(self.task, scheme=replace(self.task.scheme, method=method))
        return QuantizationRun(task, work).quantize(self.memory)

    def better(self, work: Path) -> Outcome:
        """GPTQ and AWQ, each in a directory of its own; the one nearer to the float model on the rows held back is moved
        into `work`.

        Each step may be stopped and done again: a method that is finished is recorded, then the choice, and only then
        anything is moved or deleted. Raises GateFailed when neither has a KL that is a number.
        """
        chosen = read_finished(work, _CHOSEN)
        if chosen is None:
            outcomes = {method: self._finished(method, work) for method in _COMPARED}
            kl = {method: outcome.held_back_kl for method, outcome in outcomes.items()}
            best = nearest(kl)
            outcome = outcomes[best].model_copy(
                update={
                    "seconds": sum(o.seconds for o in outcomes.values()),
                    "peak_memory_bytes": max(o.peak_memory_bytes for o in outcomes.values()),
                }
            )
            chosen = {"outcome": outcome.model_dump(mode="json"), "held_back_kl": kl}
            save_finished(work, _CHOSEN, chosen)
        self.held_back_kl = {m: k for m, k in chosen["held_back_kl"].items() if k is not None and math.isfinite(k)}
        outcome = Outcome.model_validate(chosen["outcome"])
        if (work / outcome.method).is_dir():
            move_up(work / outcome.method)
        for method in _COMPARED:
            shutil.rmtree(work / method, ignore_errors=True)
        return outcome

    def _finished(self, method: str, work: Path) -> Outcome:
        """The outcome of one method: recorded by the run that this one resumes, or come by now."""
        place = work / method
        if (recorded := read_finished(work, method)) is not None:
            return Outcome.model_validate(recorded)
        place.mkdir(exist_ok=True)
        outcome = self.run(method, place)
        flush(place)  # the record must not reach the disk before what it speaks of
        save_finished(work, method, outcome.model_dump(mode="json"))
        return outcome


def nearest(kl: dict[str, float | None]) -> str:
    """The method of the least KL; one that is no number never wins. GateFailed when none is a number."""
    numbers = {method: value for method, value in kl.items() if value is not None and math.isfinite(value)}
    if not numbers:
        raise GateFailed(
            f"Neither {' nor '.join(kl)} gave a model whose divergence on the held-back rows is a number. Look for NaN "
            "or huge values in the model (`qtk inspect`), or choose a --method."
        )
    return min(numbers, key=lambda method: numbers[method])


def move_up(directory: Path) -> None:
    """Moves what is in `directory` to where it lies itself, the state of a finished run left out."""
    remove_work(directory)
    for path in sorted(directory.iterdir()):
        path.rename(directory.parent / path.name)


def flush(directory: Path) -> None:
    """Makes the files in `directory` reach the disk."""
    for path in directory.rglob("*"):
        if path.is_file() and WORK not in path.parts:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
