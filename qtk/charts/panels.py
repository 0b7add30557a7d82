"""Small charts beside each other on one logarithmic scale: a line of points for each series, over whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import LegendEntry, legend, line_mark, series_class
from qtk.charts.scale import Scale, log_scale, tick_text
from qtk.charts.svg import Chart, element, percent, shortened, text

_HEIGHT, _TOP, _BOTTOM = 148, 24, 22
_COLUMNS = 4
_DOTS = 40  # points in a line; from there on the line alone is drawn


@dataclass(frozen=True)
class Panel:
    """One of the charts. series: for each series of the set, the (number, value) of its points in order, values above zero."""

    label: str
    series: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True)
class PanelSet:
    """What is drawn. over: what the numbers count; value: what the values are; series: their names."""

    title: str
    over: str
    value: str
    series: tuple[str, ...]
    panels: Sequence[Panel]

    @property
    def scale(self) -> Scale:
        """The values' axis, the same in every panel."""
        return log_scale(v for panel in self.panels for points in panel.series for _, v in points)

    def legend(self) -> Chart:
        """The legend by itself, for a page that lays out the panels."""
        drawn = legend([LegendEntry(line_mark(number), name) for number, name in enumerate(self.series)])
        return Chart(f"Legend of {self.title}", ", ".join(self.series), drawn.height, drawn.body)

    def charts(self) -> list[Chart]:
        """A chart for each panel."""
        return [self._panel(panel) for panel in self.panels]

    def draw(self) -> Chart:
        """All panels in one chart, in rows of four."""
        top = self.legend()
        body = top.body
        for number, chart in enumerate(self.charts()):
            row, column = divmod(number, _COLUMNS)
            body += element(
                "svg", chart.body,
                x=percent(column / _COLUMNS), y=top.height + row * (_HEIGHT + 12), width="23%", height=_HEIGHT, overflow="visible",
            )  # fmt: skip
        rows = -(-len(self.panels) // _COLUMNS)
        return Chart(self.title, f"{self.value} over {self.over}.", top.height + rows * (_HEIGHT + 12), body)

    def _panel(self, panel: Panel) -> Chart:
        numbers = [number for points in panel.series for number, _ in points]
        first, last = min(numbers, default=0), max(numbers, default=0)
        body = text(shortened(panel.label, 22), x="0", y=12, class_="strong") + self._grid(first, last)
        for number, points in enumerate(panel.series):
            body += self._line(number, points, first, max(last - first, 1))
        return Chart(f"{panel.label}: {self.value}", self._description(panel), _HEIGHT, body)

    def _grid(self, first: int, last: int) -> str:
        parts = []
        for tick in self.scale.ticks:
            y = self._y(tick)
            parts.append(element("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
            parts.append(text(tick_text(tick), x="0", y=y - 3, class_="muted"))
        foot = _HEIGHT - 6
        parts.append(text(f"{self.over} {first}", x="0", y=foot, class_="muted"))
        parts.append(text(str(last), x="100%", y=foot, class_="muted", anchor="end") if last > first else "")
        return "".join(parts)

    def _line(self, number: int, points: Sequence[tuple[int, float]], first: int, span: int) -> str:
        inside = [(0.22 + 0.76 * (place - first) / span, self._y(value)) for place, value in points]
        line = " ".join(f"{100 * x:.2f},{y:.1f}" for x, y in inside)
        drawn = element("polyline", points=line, class_=series_class(number)) if len(inside) > 1 else ""
        drawn = element(
            "svg", drawn, x=0, y=0, width="100%", height=_HEIGHT, viewBox=f"0 0 100 {_HEIGHT}", preserveAspectRatio="none"
        )  # fmt: skip
        if len(inside) <= _DOTS:
            drawn += "".join(
                element("circle", cx=percent(x), cy=y, r=2, class_=f"{series_class(number)} whisker") for x, y in inside
            )
        return drawn

    def _y(self, value: float) -> float:
        return _TOP + 12 + (1 - self.scale.share(value)) * (_HEIGHT - _TOP - _BOTTOM - 12)

    def _description(self, panel: Panel) -> str:
        said = []
        for name, points in zip(self.series, panel.series, strict=True):
            if points:
                values = [value for _, value in points]
                mean = sum(values) / len(values)
                said.append(f"{name}: {len(values)} points, mean {mean:.2e}, largest {max(values):.2e}")
        return "; ".join(said)
