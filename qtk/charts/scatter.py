"""Points in a plane, each with its name: two measures of several things, those marked that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import LegendEntry, legend, series_point
from qtk.charts.scale import Scale, linear_scale, tick_text
from qtk.charts.svg import Chart, element, percent, shortened, text

_HEIGHT, _LEFT, _RIGHT, _CHARACTERS = 260, 0.09, 0.04, 34


@dataclass(frozen=True)
class NamedPoint:
    """A point. marked: it is one of the best."""

    name: str
    x: float
    y: float
    marked: bool = False


@dataclass(frozen=True)
class ScatterChart:
    """What is drawn. x_axis, y_axis: what the values are, with their units. marked, others: what the two kinds are called."""

    title: str
    x_axis: str
    y_axis: str
    marked: str
    others: str
    points: Sequence[NamedPoint]

    def draw(self) -> Chart:
        """The chart; its description names every point."""
        top = legend([LegendEntry(series_point(1), self.marked), LegendEntry(series_point(0), self.others)])
        across, up = (
            linear_scale([point.x for point in self.points]),
            linear_scale([point.y for point in self.points]),
        )
        start = top.height + 18
        body = top.body + text(self.y_axis, x="0", y=top.height + 8, class_="muted")
        body += _grid(across, up, start)
        body += "".join(_mark(point, across, up, start) for point in self.points)
        end = start + _HEIGHT
        body += text(self.x_axis, x="100%", y=end + 32, class_="muted", anchor="end")
        return Chart(self.title, self._description(), end + 42, body)

    def _description(self) -> str:
        points = " ".join(f"{point.name}: {point.x:.4g}, {point.y:.4g}." for point in self.points)
        return f"{self.x_axis} and {self.y_axis}. {points}"


def _x(scale: Scale, value: float) -> str:
    return percent(_LEFT + (1 - _LEFT - _RIGHT) * scale.share(value))


def _y(scale: Scale, value: float, start: float) -> float:
    return start + _HEIGHT * (1 - scale.share(value))


def _grid(across: Scale, up: Scale, start: float) -> str:
    parts = []
    for tick in across.ticks:
        place = _x(across, tick)
        parts.append(element("line", x1=place, x2=place, y1=start, y2=start + _HEIGHT, class_="grid"))
        parts.append(text(tick_text(tick), x=place, y=start + _HEIGHT + 14, class_="muted", anchor="middle"))
    for tick in up.ticks:
        place_up = _y(up, tick, start)
        parts.append(
            element("line", x1=percent(_LEFT), x2=percent(1 - _RIGHT), y1=place_up, y2=place_up, class_="grid")
        )
        parts.append(text(tick_text(tick), x="0", y=place_up + 4, class_="muted"))
    return "".join(parts)


def _mark(point: NamedPoint, across: Scale, up: Scale, start: float) -> str:
    place, height = _x(across, point.x), _y(up, point.y, start)
    left = across.share(point.x) > 0.6
    words = text(
        shortened(point.name, _CHARACTERS), x=place, y=height - 7, class_="muted", anchor="end" if left else "start"
    )
    return element("g", series_point(1 if point.marked else 0, place, height) + words)
