"""The answer of `qtk run --dry-run`: what would be done about each step, what that takes, what the machine lacks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.engines.forecast import Rates
from qtk.errors import MachineError
from qtk.recipes.machine_lacks import Lack

PlannedStatus = Literal["to do", "up to date", "taken as it is"]


class PlannedStep(BaseModel):
    """What would be done about a step, and why. Bytes and seconds; None where nothing is done, or nothing tells.

    written: of what stands already, where the step is up to date; None for results, which take a few MB at most. at_most: the
    seconds are a bound; measured: they are those of the time before, and not predicted.
    """

    model_config = ConfigDict(frozen=True)
    step: str
    stage: str
    directory: str
    status: PlannedStatus
    why: str | None = None
    written: int | None = None
    scratch: int | None = None
    memory: int | None = None
    seconds: float | None = None
    at_most: bool = False
    measured: bool = False


class PlannedSource(BaseModel):
    """A model or adapter that the recipe names. place: its directory; None for one on the hub, of which `missing` bytes are to be
    fetched."""

    model_config = ConfigDict(frozen=True)
    source: str
    text: str
    place: str | None
    missing: int = 0


class DryRun(BaseModel):
    """The answer of `qtk run --dry-run`. needed_disk: bytes at the most at one time, beside what is there; rates: of the machine, where
    times follow from them. begun: whether the directory holds a run already."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    directory: str
    begun: bool
    sources: tuple[PlannedSource, ...]
    steps: tuple[PlannedStep, ...]
    needed_disk: int
    free_disk: int
    available_memory: int
    rates: Rates | None
    lacks: tuple[Lack, ...]

    @property
    def to_do(self) -> tuple[PlannedStep, ...]:
        """The steps that would be done."""
        return tuple(step for step in self.steps if step.status == "to do")

    @property
    def shortage(self) -> MachineError | None:
        """The error of a machine that lacks something; None where nothing is lacking."""
        if not self.lacks:
            return None
        lines = dict.fromkeys(f"  {lack.step}: {lack.text}".replace("\n", "\n  ") for lack in self.lacks)
        return MachineError("This machine lacks what the run needs:\n" + "\n".join(lines))
