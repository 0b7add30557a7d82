"""The charts of a report, from what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtk.bench.accuracy.results.plot import comparison_charts
from qtk.bench.latency_result import EngineLatency
from qtk.charts.bars import Bar, BarChart, BarGroup
from qtk.charts.panels import Panel, PanelSet
from qtk.charts.stack import StackChart, StackPart
from qtk.charts.svg import Chart
from qtk.release.findings import Findings
from qtk.release.headline import decode_bound, ratio_of
from qtk.release.layer_errors import LayerErrors
from qtk.release.material import BuiltEngine, Material, TrainedAdapter
from qtk.release.numbers import figure, with_error
from qtk.sizes import gpu_size_text


@dataclass(frozen=True)
class Drawings:
    """The charts by what they are of. accuracy: for each pair of results; training: by the name of the adapter; errors: by the
    name of the quantized model; memory: by the name of the engine."""

    accuracy: tuple[tuple[Chart, ...], ...]
    latency: Chart | None
    training: Mapping[str, PanelSet]
    errors: Mapping[str, PanelSet]
    memory: Mapping[str, Chart]

    def files(self) -> dict[str, Chart]:
        """Every chart by the name of its file."""
        named = {
            accuracy_file(pair, number): chart
            for pair, charts in enumerate(self.accuracy)
            for number, chart in enumerate(charts)
        }
        latency = {"latency.svg": self.latency} if self.latency is not None else {}
        errors = {f"error-{name}.svg": panels.draw() for name, panels in self.errors.items()}
        training = {f"training-{name}.svg": panels.draw() for name, panels in self.training.items()}
        return {
            **named,
            **latency,
            **training,
            **errors,
            **{f"memory-{name}.svg": chart for name, chart in self.memory.items()},
        }


def accuracy_file(pair: int, number: int) -> str:
    """The name of the file of a pair's chart."""
    return f"accuracy-{pair + 1}-{number + 1}.svg"


def drawings(found: Findings) -> Drawings:
    """Draws what there is to draw."""
    return Drawings(
        accuracy=tuple(tuple(comparison_charts(pair.comparison)) for pair in found.order.pairs),
        latency=_latency(found),
        training={trained.made.name: _training(trained) for trained in found.material.trained if trained.course},
        errors={name: _errors(errors) for name, errors in found.errors.items() if errors.kinds},
        memory={engine.made.name: chart for engine in found.material.engines if (chart := _memory(engine)) is not None},
    )


def _latency(found: Findings) -> Chart | None:
    """tokens/s by shape, a bar for each engine, with the bound on the last one's and what its gates ask for."""
    engines = found.material.timed_engines
    if not engines:
        return None
    shapes = dict.fromkeys(shape.name for engine in engines for shape in engine.shapes)
    chart = BarChart(
        "Latency by shape",
        "tokens/s of the whole call",
        tuple(engine.engine for engine in engines),
        [_shape_group(found, engines, shape) for shape in shapes],
        bound_name=f"bound of {engines[-1].engine}",
        asked_name="asked for by a gate",
    )
    return chart.draw()


def _shape_group(found: Findings, engines: Sequence[EngineLatency], name: str) -> BarGroup:
    last = engines[-1]
    shape = last.shape(name)
    bound = None if shape is None else decode_bound(found.material, last.engine)
    return BarGroup(
        label=name,
        remark=_remark(found.material, last, name),
        bars=tuple(
            None
            if (made := engine.shape(name)) is None
            else Bar(made.tokens_per_s, made.standard_error, with_error(made.tokens_per_s, made.standard_error))
            for engine in engines
        ),
        bound=None if bound is None or shape is None else bound * shape.batch_size,
        asked=_asked(found, last.engine, name),
    )


def _remark(material: Material, engine: EngineLatency, name: str) -> str:
    shape, bound = engine.shape(name), decode_bound(material, engine.engine)
    if shape is not None and bound is not None and shape.decode_tokens_per_s is not None:
        return f"{shape.decode_tokens_per_s / (bound * shape.batch_size):.0%} of the bound"
    ratio = ratio_of(material, engine.engine, name)
    return "" if ratio is None else f"{figure(ratio.ratio)} times {ratio.baseline}"


def _asked(found: Findings, engine: str, shape: str) -> float | None:
    """The tokens/s that a gate asks for of an engine at a shape."""
    asked = [
        gate.bound
        for gate in found.verdict.gates
        if gate.metric == "tokens-per-s" and gate.of in (shape, f"{engine} at {shape}")
    ]
    return next((value for value in asked if value is not None), None)


def _training(trained: TrainedAdapter) -> PanelSet:
    """The loss of each task over the steps, of the rows that are trained on and of those that are held back."""
    tasks = dict.fromkeys(task for line in trained.course for task in line.get("tasks", ()))

    def points(task: str, part: str) -> tuple[tuple[int, float], ...]:
        lines = [line for line in trained.course if part in line and (line["tasks"].get(task) or 0) > 0]
        return tuple((line["step"], line["tasks"][task]) for line in lines)

    return PanelSet(
        "Loss by task",
        "step",
        "nats a token",
        ("trained on", "held back"),
        [Panel(task, (points(task, "loss"), points(task, "held_back"))) for task in tasks],
    )


def _errors(errors: LayerErrors) -> PanelSet:
    return PanelSet(
        "Error by layer",
        "block",
        "share of output energy lost",
        ("rounded to nearest", "as quantized"),
        [Panel(kind.kind, (kind.points_rounded, kind.points_quantized)) for kind in errors.kinds],
    )


def _memory(engine: BuiltEngine) -> Chart | None:
    table = engine.description.memory
    if table is None:
        return None
    available = table.available_bytes
    return StackChart(
        f"Memory of {engine.made.name}",
        [StackPart(part.name, part.bytes, gpu_size_text(part.bytes)) for part in table.parts],
        StackPart("all of it", table.needed_bytes, gpu_size_text(table.needed_bytes)),
        None if available is None else StackPart(f"free on {table.gpu}", available, gpu_size_text(available)),
    ).draw()
