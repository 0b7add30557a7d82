"""A published comparison, printed beside a measured one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qtk.bench.accuracy.results.score import PublishedPair
from qtk.errors import InputError
from qtk.shipped import load_yaml, shipped_directory, shipped_names

_ROOM = "bench/baselines"


class Baseline(BaseModel):
    """A published comparison: pass@1 of each language before and after, in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    summary: str
    suite: str
    tasks: int
    scores: dict[str, PublishedPair]


def load_baseline(name: str) -> Baseline | None:
    """A published comparison by name or YAML path; None for "none"."""
    if name == "none":
        return None
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_directory(_ROOM) / f"{name}.yaml"
        if not path.is_file():
            names = ", ".join(shipped_names(_ROOM))
            raise InputError(f"There is no baseline {name!r}. Baselines: {names}, a YAML file, or none.")
    try:
        return Baseline.model_validate(load_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path} does not describe a baseline: {error}") from None
