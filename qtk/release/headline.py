"""The five numbers that a person asks for first, each of the model that is released: the last one of the chain."""

from __future__ import annotations

from dataclasses import dataclass

from qtk.bench.accuracy.results.score import ComparedRate, ComparedRow
from qtk.bench.latency_result import EngineLatency, ShapeLatency, SpeedRatio
from qtk.charts.svg import shortened
from qtk.release.before_after import Order
from qtk.release.material import BuiltEngine, Made, Material
from qtk.release.numbers import MINUS, figure, signed, with_error
from qtk.sizes import gpu_size_text, size_text
from qtk.wording import counted

_NAME = 30  # characters of a name in a note


@dataclass(frozen=True)
class Headline:
    """A number. name: what it is; value: with its unit, None where it was not measured; notes: what to hold it against, each a
    line of its own, or why there is no value."""

    name: str
    value: str | None
    unit: str
    notes: tuple[str, ...]


def headlines(material: Material, order: Order) -> tuple[Headline, ...]:
    """Size, accuracy, divergence, speed, memory."""
    return (_size(material), _accuracy(material, order), _divergence(material), _speed(material), _memory(material))


def _size(material: Material) -> Headline:
    if not material.models:
        return Headline("Size", None, "", ("no model or engine is among the directories",))
    released = material.models[-1]
    value, unit = size_text(released.bytes).split(" ")
    origin = _float_of(material, released)
    share = (
        f"{released.bytes / origin.bytes:.0%} of {shortened(origin.name, _NAME)}, {size_text(origin.bytes)}"
        if origin
        else None
    )
    return Headline("Size", value, unit, (shortened(released.name, _NAME), *([share] if share else [])))


def _float_of(material: Material, released: Made) -> Made | None:
    """What the size is held against: the float engine, else the merged model."""
    floats = [engine.made for engine in material.engines if engine.description.quantization is None]
    engine = any(engine.made is released for engine in material.engines)
    candidates = [*(floats if engine else []), *material.merged]
    return next((made for made in candidates if made is not released), None)


def _accuracy(material: Material, order: Order) -> Headline:
    name = "Accuracy change"
    rows = [row for pair in order.pairs for row in pair.comparison.rows if not row.pooled]
    rates = [row for row in rows if isinstance(row, ComparedRate)]
    if rates:
        worst = min(rates, key=lambda row: row.difference)
        return Headline(name, signed(worst.difference), "points", _change_notes(worst, len(rates)))
    if rows:
        worst_row = min(rows, key=lambda row: row.difference)
        return Headline(name, signed(worst_row.difference), worst_row.unit, _change_notes(worst_row, len(rows)))
    if material.accuracies:
        return Headline(name, None, "", ("scored, but not before and after",))
    return Headline(name, None, "", ("no suite was run",))


def _change_notes(row: ComparedRow, count: int) -> tuple[str, ...]:
    of = f"{shortened(row.label, _NAME)}, the largest loss of {count}" if count > 1 else shortened(row.label, _NAME)
    limits = f"95 % limits {row.limits}".replace("-", MINUS) if row.limits else row.evidence
    return (of, limits, *([row.verdict] if row.verdict else []))


def _divergence(material: Material) -> Headline:
    name = "KL divergence"
    if not material.divergences:
        return Headline(name, None, "", ("no divergence was measured",))
    _, result = material.divergences[-1]
    pooled = result.pooled
    error = f"± {figure(pooled.kl.standard_error, 2)}, {shortened(result.model.rsplit('/', 1)[-1], _NAME)} from the float model"
    same = f"same most likely token {pooled.top1_agreement.mean:.1%}"
    return Headline(name, figure(pooled.kl.mean), "nats/token", (error, same))


def _speed(material: Material) -> Headline:
    name = "Speed"
    engine = next(reversed(material.timed_engines), None)
    if engine is None or not engine.shapes:
        return Headline(name, None, "", ("no latency was measured",))
    shape = max(engine.shapes, key=lambda shape: shape.input_len + shape.output_len)
    return Headline(name, figure(shape.tokens_per_s), "tokens/s", tuple(_speed_notes(material, engine, shape)))


def _speed_notes(material: Material, engine: EngineLatency, shape: ShapeLatency) -> list[str]:
    batch = f", batch {shape.batch_size}" if shape.batch_size > 1 else ""
    error = f"± {figure(shape.standard_error, 2)}, " if shape.standard_error else ""
    notes = [f"{error}{shortened(engine.engine, _NAME)} at {shape.name}{batch}"]
    if (bound := decode_bound(material, engine.engine)) is not None and shape.decode_tokens_per_s is not None:
        share = shape.decode_tokens_per_s / (bound * shape.batch_size)
        notes.append(f"decoding at {share:.0%} of the bound of {figure(bound * shape.batch_size)}")
    ratio = ratio_of(material, engine.engine, shape.name)
    if ratio is not None:
        doubt = ", in doubt" if ratio.in_doubt else ""
        notes.append(f"{with_error(ratio.ratio, ratio.standard_error)} times {shortened(ratio.baseline, _NAME)}{doubt}")
    return notes if len(notes) > 1 else [*notes, "nothing to hold it against: no bound, no float engine"]


def decode_bound(material: Material, engine: str) -> float | None:
    """The bound on an engine's decoded tokens/s for each row, by its memory table; None without one."""
    tables = {found.made.name: found.description.memory for found in material.engines}
    table = tables.get(engine)
    return None if table is None else table.decode_bound_tokens_per_s


def ratio_of(material: Material, engine: str, shape: str) -> SpeedRatio | None:
    """How many times as fast an engine is as the first one at a shape."""
    return next((r for r in material.speed_ratios if (r.engine, r.shape) == (engine, shape)), None)


def released_engine(material: Material) -> BuiltEngine | None:
    """The last engine of the chain."""
    return next(reversed(material.engines), None)


def _memory(material: Material) -> Headline:
    engine = released_engine(material)
    if engine is None:
        return Headline("Memory", None, "", ("no engine was built",))
    table = engine.description.memory
    if table is None:
        return Headline(
            "Memory",
            None,
            "",
            (f"{shortened(engine.made.name, _NAME)} has no memory table: it runs on {engine.description.gpu}",),
        )
    value, unit = gpu_size_text(table.needed_bytes).split(" ")
    room = "" if table.available_bytes is None else f" of {gpu_size_text(table.available_bytes)}"
    fits = "fits" if table.fits else "does not fit"
    return Headline(
        "Memory",
        value,
        unit,
        (f"counted, not measured: {fits}{room} on {table.gpu}", counted(len(table.parts), "part")),
    )
