"""The ranking of a sweep as a directory: result.json, ranking.md and a plot, with a manifest that names every run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.bench.results import RESULT_NAME, result_directory, write_result
from qtk.charts.scatter import NamedPoint, ScatterChart
from qtk.checkpoint.atomic import write_atomic
from qtk.recipes.state import RUN_NAME
from qtk.release.numbers import with_error
from qtk.sizes import size_text
from qtk.sweeps.ranking import RankedVariant, Ranking

RANKING = "ranking"
COLUMNS = ("variant", "", "size", "KL, nats/token", "tokens/s", "at")


class SweepOptions(BaseModel):
    """What a sweep was asked for: the recipe's name, --set, and the values of each setting of the grid."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    settings: tuple[str, ...] = ()
    grid: dict[str, tuple[str, ...]] = {}


def write_ranking(ranking: Ranking, options: SweepOptions, out: Path) -> Path:
    """Writes out/ranking, in place of an earlier one, and returns it."""
    runs = {f"run {variant.name}": Path(variant.directory) / RUN_NAME for variant in ranking.variants}
    place = out / RANKING
    with result_directory(place, "sweep", options, runs, overwrite=True) as directory:
        write_result(ranking, directory / RESULT_NAME)
        write_atomic(directory / "ranking.md", _markdown(ranking))
        chart = ranking_chart(ranking)
        if chart is not None:
            write_atomic(directory / "ranking.svg", chart.draw().file())
    return place


def ranking_chart(ranking: Ranking) -> ScatterChart | None:
    """Divergence against size, or against speed where sizes do not differ; None without two measures."""
    finished = [variant for variant in ranking.variants if variant.error is None]
    sizes = {variant.bytes for variant in finished}
    other = "bytes" if len(sizes) > 1 or "tokens_per_s" not in ranking.measures else "tokens_per_s"
    if not {"kl", other} <= set(ranking.measures):
        return None

    def place(variant: RankedVariant) -> float:
        return (variant.bytes or 0) / 1e6 if other == "bytes" else variant.tokens_per_s or 0.0

    return ScatterChart(
        title=f"Variants of {ranking.recipe}",
        x_axis="size, MB" if other == "bytes" else "tokens/s",
        y_axis="KL from the float model, nats/token",
        marked="not beaten in every measure",
        others="beaten",
        points=[NamedPoint(variant.name, place(variant), variant.kl or 0.0, variant.best) for variant in finished],
    )


def ranking_rows(ranking: Ranking) -> list[tuple[str, ...]]:
    """A line of `COLUMNS` for each variant."""
    return [_row(variant) for variant in ranking.variants]


def _row(variant: RankedVariant) -> tuple[str, ...]:
    if variant.error is not None:
        return (variant.name, "failed", "-", "-", "-", "-")
    kl = "-" if variant.kl is None else with_error(variant.kl, variant.kl_standard_error)
    speed = "-" if variant.tokens_per_s is None else with_error(variant.tokens_per_s, variant.tokens_standard_error)
    size = "-" if variant.bytes is None else size_text(variant.bytes)
    return (variant.name, "best" if variant.best else "", size, kl, speed, variant.shape or "-")


def _markdown(ranking: Ranking) -> str:
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *ranking_rows(ranking)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    measures = ", ".join(ranking.measures) or "nothing that every variant has"
    failed = "".join(
        f"\n- {variant.name}: {variant.error}" for variant in ranking.variants if variant.error is not None
    )
    return (
        f"# Variants of {ranking.recipe}\n\n{table}\n\n"
        f"Best: no other variant is as good in all of these and better in one: {measures}.\n{failed}"
    )
