"""Curves: points that follow each other, over two linear axes, each point with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import LegendEntry, legend, series_class, series_point
from qtk.charts.scale import Scale, linear_scale, tick_text
from qtk.charts.svg import Chart, element, percent, text

_HEIGHT, _BOTTOM, _LEFT, _RIGHT = 300, 40, 0.08, 0.94


@dataclass(frozen=True)
class CurvePoint:
    """A point, with what is written beside it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    """Points in the order in which they are joined."""

    name: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class CurveChart:
    """What is drawn. across, up: what the axes are, with their units. Both begin at 0."""

    title: str
    across: str
    up: str
    curves: Sequence[Curve]

    def draw(self) -> Chart:
        """The chart, with a legend where there are several curves."""
        x = linear_scale([0.0, *(point.x for curve in self.curves for point in curve.points)], least=0)
        y = linear_scale([0.0, *(point.y for curve in self.curves for point in curve.points)], least=0)
        entries = [LegendEntry(series_point(number), curve.name) for number, curve in enumerate(self.curves)]
        top = legend(entries)
        top_height = top.height + 16
        inner = self._grid(x, y) + "".join(self._curve(number, curve, x, y) for number, curve in enumerate(self.curves))
        body = top.body + text(self.up, x="0", y=top.height + 8, class_="muted")
        body += element("svg", inner, x=0, y=top_height, width="100%", height=_HEIGHT, overflow="visible")
        return Chart(self.title, self._description(), top_height + _HEIGHT, body)

    def _grid(self, x: Scale, y: Scale) -> str:
        parts = []
        for tick in y.ticks:
            height = _height(y, tick)
            parts.append(element("line", x1=percent(_LEFT), x2=percent(_RIGHT), y1=height, y2=height, class_="grid"))
            parts.append(text(tick_text(tick), x=percent(_LEFT - 0.01), y=height + 4, class_="muted", anchor="end"))
        for tick in x.ticks:
            parts.append(text(tick_text(tick), x=_across(x, tick), y=_HEIGHT - 22, class_="muted", anchor="middle"))
        parts.append(text(self.across, x=percent(_RIGHT), y=_HEIGHT - 4, class_="muted", anchor="end"))
        return "".join(parts)

    def _curve(self, number: int, curve: Curve, x: Scale, y: Scale) -> str:
        parts = [
            element(
                "line", x1=_across(x, one.x), y1=_height(y, one.y), x2=_across(x, other.x), y2=_height(y, other.y),
                class_=series_class(number),
            )
            for one, other in zip(curve.points, curve.points[1:], strict=False)
        ]  # fmt: skip
        for point in curve.points:
            place, height = _across(x, point.x), _height(y, point.y)
            parts.append(series_point(number, place, height))
            # Labels of neighbouring curves lie on different sides, so that they seldom cover each other.
            side = height - 9 if number % 2 else height + 18
            parts.append(text(point.label, x=place, y=side, class_="muted", anchor="middle"))
        return "".join(parts)

    def _description(self) -> str:
        said = [
            f"{curve.name}: " + ", ".join(f"{point.label}: {point.x:.4g}, {point.y:.4g}" for point in curve.points)
            for curve in self.curves
        ]
        return f"{self.across} across, {self.up} up. " + "; ".join(said)


def _across(scale: Scale, value: float) -> str:
    return percent(_LEFT + (_RIGHT - _LEFT) * scale.share(value))


def _height(scale: Scale, value: float) -> float:
    return 14 + (_HEIGHT - _BOTTOM - 14) * (1 - scale.share(value))
