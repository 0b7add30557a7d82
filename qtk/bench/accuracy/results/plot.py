"""A comparison as charts: rates before and after with their intervals, and the changes of what else was compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtk.bench.accuracy.results.comparison import Comparison
from qtk.bench.accuracy.results.score import ComparedRate, ComparedRow
from qtk.bench.accuracy.results.statistics import rate_limits
from qtk.charts.ranges import RangeChart, RangeRow, Spread
from qtk.charts.svg import Chart
from qtk.errors import InputError

PLOT_ENDING = ".svg"


def require_plot_name(path: Path, *, inside: Path | None) -> None:
    """InputError for a name that is not one of a chart, or that leads out of the directory `inside`: before anything is
    compared."""
    if path.suffix != PLOT_ENDING:
        raise InputError(f"{path} cannot be drawn: the name of a plot ends in {PLOT_ENDING}.")
    if inside is not None and len(path.parts) > 1:
        raise InputError(f"With -o the plot is written into {inside}: give --plot {path.name}.")


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the first chart of a comparison into a .svg file: rates before and after with their 95 % intervals, and the
    published pairs; without any rate, the changes of what else was compared. InputError when there is neither."""
    charts = comparison_charts(comparison)
    if not charts:
        raise InputError("There is nothing to draw: the results have neither pass rates nor likelihoods in common.")
    path.write_text(charts[0].file(), encoding="utf-8")


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """A chart for each kind of rate, then one for each kind of change."""
    kinds: dict[tuple[str, str], list[ComparedRow]] = {}
    for row in comparison.rows:
        if isinstance(row, ComparedRate):
            kinds.setdefault(("rate", row.kind), []).append(row)
        elif row.change_axis:
            kinds.setdefault(("change", row.kind), []).append(row)
    drawn = sorted(kinds.items(), key=lambda entry: entry[0][0] != "rate")
    return [_rates(rows) if what == "rate" else _changes(rows) for (what, _), rows in drawn]


def _rates(rows: Sequence[ComparedRow]) -> Chart:
    found = [row for row in rows if isinstance(row, ComparedRate)]
    return RangeChart(
        found[0].title,
        f"{found[0].rate_axis}, with 95 % intervals",
        ("before", "after"),
        [
            RangeRow(
                row.label,
                _remark(row),
                (_rate(row.before, row.before_error, row.tasks), _rate(row.after, row.after_error, row.tasks)),
                (row.published.before, row.published.after) if row.published is not None else (),
            )
            for row in found
        ],
        least=0.0,
        most=100.0,
    ).draw()


def _rate(rate: float, error: float | None, tasks: int) -> Spread:
    limits = rate_limits(rate / 100, None if error is None else error / 100, tasks).times(100)
    return Spread(rate, limits.low, limits.high)


def _changes(rows: Sequence[ComparedRow]) -> Chart:
    tolerance = rows[0].tolerance
    return RangeChart(
        rows[0].title,
        f"{rows[0].change_axis}, 95 % limits",
        ("change",),
        [RangeRow(row.label, _remark(row), (_change(row),)) for row in rows],
        limit=(-tolerance, f"tolerance, {tolerance:g}"),
    ).draw()


def _remark(row: ComparedRow) -> str:
    return row.change.replace("-", "\N{MINUS SIGN}", 1)


def _change(row: ComparedRow) -> Spread:
    low = row.difference if row.low is None else row.low
    return Spread(row.difference, low, row.difference if row.high is None else row.high)
