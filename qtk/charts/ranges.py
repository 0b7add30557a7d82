"""Figures with their intervals, a row for each thing that was measured and a line in it for each side: before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import LegendEntry, diamond, legend, limit_mark, series_class, series_point
from qtk.charts.scale import Scale, linear_scale, tick_text
from qtk.charts.svg import Chart, element, percent, shortened, text

_LABEL, _STEP, _GAP = 20, 16, 12
_EDGE = 0.014  # of the width
_CHARACTERS = 44  # of a row's label and remark together, on a phone


@dataclass(frozen=True)
class Spread:
    """A value with the limits of its interval (the value itself where there is none)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RangeRow:
    """One row. spreads: a value for each series, None where it was not measured. published: figures to hold it against.
    remark: at the right end of the row's heading."""

    label: str
    remark: str
    spreads: tuple[Spread | None, ...]
    published: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class RangeChart:
    """What is drawn. series: the name of each line of a row. axis: what the values are. limit: a value that is marked with an
    upright line, with its name. least, most: which the axis does not go beyond."""

    title: str
    axis: str
    series: tuple[str, ...]
    rows: Sequence[RangeRow]
    limit: tuple[float, str] | None = None
    least: float | None = None
    most: float | None = None

    def draw(self) -> Chart:
        """The chart; its description names every figure."""
        top = legend(self._legend())
        scale = self._scale()
        lines = max(len(self.series), 1)
        height = _LABEL + lines * _STEP + _GAP
        end = top.height + len(self.rows) * height
        body = top.body + _axis(scale, end)
        for number, row in enumerate(self.rows):
            place = top.height + number * height
            body += self._marks(scale, place + _LABEL, place + height - _GAP / 2) + _row(row, scale, place)
        body += text(self.axis, x="0", y=end + 32, class_="muted")
        return Chart(self.title, self._description(), end + 42, body)

    def _legend(self) -> list[LegendEntry]:
        entries = [LegendEntry(series_point(number), name) for number, name in enumerate(self.series)]
        if any(value is not None for row in self.rows for value in row.published):
            entries.append(LegendEntry(diamond(), "published"))
        if self.limit is not None:
            entries.append(LegendEntry(limit_mark(), self.limit[1]))
        return entries

    def _scale(self) -> Scale:
        spreads = [spread for row in self.rows for spread in row.spreads if spread is not None]
        values = [value for spread in spreads for value in (spread.low, spread.high, spread.value)]
        values += [value for row in self.rows for value in row.published if value is not None]
        values += [0.0, self.limit[0]] if self.limit is not None else []
        return linear_scale(values, least=self.least, most=self.most)

    def _marks(self, scale: Scale, top: float, end: float) -> str:
        """The grid and the limit behind one row's lines."""
        grid = "".join(_upright(scale, tick, (top, end), "grid") for tick in scale.ticks)
        return grid if self.limit is None else grid + _upright(scale, self.limit[0], (top, end), "limit")

    def _description(self) -> str:
        return f"{self.axis}. " + " ".join(
            f"{row.label}: "
            + ", ".join(
                f"{name} {spread.value:.4g} ({spread.low:.4g} to {spread.high:.4g})"
                for name, spread in zip(self.series, row.spreads, strict=True)
                if spread is not None
            )
            + "."
            for row in self.rows
        )


def _place(scale: Scale, value: float) -> str:
    """Where a value lies, with room at both ends for half a mark."""
    return percent(_EDGE + (1 - 2 * _EDGE) * scale.share(value))


def _upright(scale: Scale, value: float, ends: tuple[float, float], style: str) -> str:
    place = _place(scale, value)
    return element("line", x1=place, x2=place, y1=ends[0], y2=ends[1], class_=style)


def _axis(scale: Scale, end: float) -> str:
    parts = []
    for tick in scale.ticks:
        share = scale.share(tick)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        place = percent(share) if anchor != "middle" else _place(scale, tick)
        parts.append(text(tick_text(tick), x=place, y=end + 14, class_="muted", anchor=anchor))
    return "".join(parts)


def _row(row: RangeRow, scale: Scale, top: float) -> str:
    room = _CHARACTERS - len(row.remark)
    parts = [
        text(shortened(row.label, room), x="0", y=top + 14, class_="strong"),
        text(row.remark, x="100%", y=top + 14, class_="muted", anchor="end"),
    ]
    for number, spread in enumerate(row.spreads):
        y = top + _LABEL + _STEP * number + _STEP / 2
        if spread is not None:
            low, high = (_place(scale, value) for value in (spread.low, spread.high))
            parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_=f"{series_class(number)} whisker"))
            parts.append(series_point(number, _place(scale, spread.value), y))
    for number, value in enumerate(row.published):
        if value is not None:
            parts.append(diamond(_place(scale, value), top + _LABEL + _STEP * number + _STEP / 2, 4))
    return element("g", "".join(parts))
