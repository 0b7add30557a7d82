"""A comparison as a picture. matplotlib is loaded by `plot_comparison` alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.results.comparison import Comparison
from qtk.bench.accuracy.results.score import ComparedRate, ComparedRow
from qtk.bench.accuracy.results.statistics import rate_limits
from qtk.errors import InputError
from qtk.install_hints import missing_package

_BEFORE, _AFTER = "#7a9cc6", "#d18f52"
PLOT_ENDINGS = (".png", ".svg", ".pdf")


def require_plot_name(path: Path, *, inside: Path | None) -> None:
    """InputError for a name that is not one of a picture, or that leads out of the directory `inside`; MachineError
    without matplotlib: before anything is compared."""
    if path.suffix not in PLOT_ENDINGS:
        raise InputError(f"{path} cannot be drawn: the name of a plot ends in {', '.join(PLOT_ENDINGS)}.")
    if inside is not None and len(path.parts) > 1:
        raise InputError(f"With -o the plot is written into {inside}: give --plot {path.name}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_package("--plot", "matplotlib", "report")


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draws rates before and after with their 95 % intervals, and the published pairs, into a .png, .svg or .pdf file.

    Without any rate, the changes of what else was compared are drawn (of the likelihoods, say). InputError when there is
    neither.
    """
    rates = [row for row in comparison.rows if isinstance(row, ComparedRate)]
    changes = [row for row in comparison.rows if row.change_axis]
    if not rates and not changes:
        raise InputError("There is nothing to draw: the results have neither pass rates nor likelihoods in common.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(3.0 + 1.1 * len(rates or changes), 18.0), 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # without a display, whatever the machine's matplotlib settings are
    axes = figure.add_subplot()
    _draw_rates(rates, axes) if rates else _draw_changes(changes, axes)
    figure.savefig(path)


def _draw_changes(rows: Sequence[ComparedRow], axes: Any) -> None:
    lows = [row.difference - row.low if row.low is not None else 0.0 for row in rows]
    highs = [row.high - row.difference if row.high is not None else 0.0 for row in rows]
    axes.bar(range(len(rows)), [row.difference for row in rows], 0.5, yerr=[lows, highs], capsize=3, color=_AFTER)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.axhline(-rows[0].tolerance, color="black", linewidth=0.8, linestyle=":", label="tolerance")
    axes.set_xticks(range(len(rows)), [f"{row.suite}\n{row.name}" for row in rows])
    axes.set_ylabel(f"{rows[0].change_axis}, limits with 95 % confidence")
    axes.legend(fontsize="small", frameon=False)


def _draw_rates(rows: Sequence[ComparedRate], axes: Any) -> None:
    width = 0.36
    sides = (
        ("before", -width / 2, _BEFORE, [(row.before, row.before_error) for row in rows]),
        ("after", width / 2, _AFTER, [(row.after, row.after_error) for row in rows]),
    )
    for name, offset, color, rates in sides:
        places = [number + offset for number in range(len(rows))]
        shown = [
            rate_limits(rate / 100, None if error is None else error / 100, row.tasks).times(100)
            for row, (rate, error) in zip(rows, rates, strict=True)
        ]
        lows = [max(0.0, rate - limits.low) for (rate, _), limits in zip(rates, shown, strict=True)]
        highs = [max(0.0, limits.high - rate) for (rate, _), limits in zip(rates, shown, strict=True)]
        axes.bar(places, [rate for rate, _ in rates], width, yerr=[lows, highs], capsize=3, label=name, color=color)
        published = [
            (place, row.published.before if name == "before" else row.published.after)
            for place, row in zip(places, rows, strict=True)
            if row.published is not None
        ]
        if published:
            label = f"published, {name}"
            axes.plot(
                *zip(*published, strict=True), "D", markersize=5, markeredgecolor="black", color=color, label=label
            )
    axes.set_xticks(range(len(rows)), [f"{row.suite}\n{row.name}" for row in rows])
    label = rows[0].rate_axis if len({row.rate_axis for row in rows}) == 1 else ComparedRate.rate_axis
    axes.set_ylabel(f"{label}, 95 % interval")
    # Small rates must stay visible; the tops of the error bars are in the picture, up to all that can be passed.
    axes.set_ylim(0, min(100.0, max(1.0, 1.15 * axes.dataLim.y1)))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
