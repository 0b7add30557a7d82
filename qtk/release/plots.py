"""The plots of a report, as PNG files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtk.bench.latency_result import EngineLatency


def can_plot() -> bool:
    """Whether matplotlib is installed (extra `report`)."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float) -> Any:
    """A figure drawn without a display, whatever the machine's matplotlib settings are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_errors(lines: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Relative output error of every quantized linear against its block, one line a kind of linear, log scale."""
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    kinds: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        parts = line["layer"].split(".")
        number = next((int(part) for part in parts if part.isdigit()), None)
        if number is not None and line["error_after"] is not None:
            kinds.setdefault(parts[-1], []).append((number, line["error_after"]))
    for kind, points in kinds.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=".", linewidth=1, label=kind)
    axes.set(yscale="log", xlabel="block", ylabel="share of output energy lost", title="Error by layer")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    return path


def plot_training(lines: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The loss of each task over the steps: of the training rows as lines, of the held-back rows as points."""
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    tasks = dict.fromkeys(task for line in lines for task in line.get("tasks", ()))
    for number, task in enumerate(tasks):
        known = [line for line in lines if line.get("tasks", {}).get(task) is not None]
        for part, style in (
            ("loss", {"linewidth": 0.8, "alpha": 0.6}),
            ("held_back", {"marker": "o", "markersize": 4}),
        ):
            points = [(line["step"], line["tasks"][task]) for line in known if part in line]
            if points:
                label = task if part == "loss" else f"{task}, held back"
                axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, **style)
    axes.set(xlabel="step", ylabel="nats a token", title="Loss by task")
    axes.grid(alpha=0.3)
    if tasks:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    return path


def plot_latency(engines: Sequence[EngineLatency], path: Path) -> Path | None:
    """Bars of tokens/s over the whole call, a group a shape, a bar an engine. None where nothing was measured."""
    if not engines:
        return None
    figure = _figure(8, 3.5)
    axes = figure.add_subplot()
    names = [shape.name for shape in engines[0].shapes]
    width = 0.8 / len(engines)
    for index, engine in enumerate(engines):
        found = [(i, shape) for i, name in enumerate(names) if (shape := engine.shape(name)) is not None]
        places = [i + (index - (len(engines) - 1) / 2) * width for i, _ in found]
        errors = [shape.standard_error or 0.0 for _, shape in found]
        rates = [shape.tokens_per_s for _, shape in found]
        axes.bar(places, rates, width, yerr=errors, capsize=3, label=engine.engine)
    axes.set(ylabel="tokens/s, whole call", title="Latency by input/output length")
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path
