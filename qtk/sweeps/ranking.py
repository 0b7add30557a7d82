"""The variants of a sweep beside each other: size, divergence, speed, and those that no other variant beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.recipes.finished_run import measured_directories
from qtk.release.headline import released_engine
from qtk.release.material import gather
from qtk.sweeps.sweep import SweptVariant


class RankedVariant(BaseModel):
    """A variant. settings: of the grid. bytes: of the released engine's or checkpoint's files. kl: nats/token from the float model,
    of the checkpoint. tokens_per_s: of the released engine, at `shape`, the largest that was measured.
    best: no other variant is as good in every measure and better in one. error: why it ended early."""

    model_config = ConfigDict(frozen=True)
    name: str
    directory: str
    settings: dict[str, str]
    bytes: int | None = None
    kl: float | None = None
    kl_standard_error: float | None = None
    tokens_per_s: float | None = None
    tokens_standard_error: float | None = None
    shape: str | None = None
    best: bool = False
    error: str | None = None


class Ranking(BaseModel):
    """A sweep's variants: the best first, by their divergence. measures: those that decided, the ones that every finished variant has."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    measures: tuple[str, ...]
    variants: tuple[RankedVariant, ...]


# The measures by name, and whether more of it is better.
MEASURES = {"bytes": False, "kl": False, "tokens_per_s": True}


def rank(recipe: str, swept: Sequence[SweptVariant]) -> Ranking:
    """Reads what the runs measured, and finds the Pareto front."""
    found = [_measured(it) for it in swept]
    finished = [it for it in found if it.error is None]
    measures = tuple(name for name in MEASURES if finished and all(getattr(it, name) is not None for it in finished))
    front = set(pareto_front([[_cost(it, name) for name in measures] for it in finished])) if measures else set()
    ranked = [it.model_copy(update={"best": number in front}) for number, it in enumerate(finished)]
    order = "kl" if "kl" in measures else measures[0] if measures else None
    ranked.sort(key=lambda it: (not it.best, _cost(it, order) if order else 0.0))
    return Ranking(recipe=recipe, measures=measures, variants=(*ranked, *(it for it in found if it.error is not None)))


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """The numbers of the points that no other dominates: none is at most as costly in everything and cheaper in something."""

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and any(
            a < b for a, b in zip(one, other, strict=True)
        )

    return [number for number, point in enumerate(costs) if not any(dominates(other, point) for other in costs)]


def _cost(variant: RankedVariant, measure: str) -> float:
    value = getattr(variant, measure)
    return -value if MEASURES[measure] else value


def _measured(swept: SweptVariant) -> RankedVariant:
    known = RankedVariant(
        name=swept.variant.name, directory=str(swept.directory), settings=dict(swept.variant.settings)
    )
    if swept.error is not None:
        return known.model_copy(update={"error": str(swept.error)})
    return known.model_copy(update=_measures(swept.directory))


def _measures(run_dir: Path) -> dict[str, object]:
    material = gather(measured_directories(run_dir))
    update: dict[str, object] = {}
    engine = released_engine(material)
    if material.models:
        update["bytes"] = material.models[-1].bytes
    if material.divergences:
        kl = material.divergences[0][1].pooled.kl
        update |= {"kl": kl.mean, "kl_standard_error": kl.standard_error}
    timed = [it for it in material.timed_engines if engine is not None and it.engine == engine.made.name and it.shapes]
    if timed:
        shape = max(timed[-1].shapes, key=lambda it: it.input_len + it.output_len)
        update |= {
            "tokens_per_s": shape.tokens_per_s,
            "tokens_standard_error": shape.standard_error,
            "shape": shape.name,
        }
    return update
