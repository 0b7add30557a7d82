"""Bars from zero, a group for each thing that was measured and a bar in it for each series, with error bars and marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import LegendEntry, bar_mark, diamond, legend, limit_mark, series_class
from qtk.charts.svg import Chart, element, percent, shortened, text

_LABEL, _BAR, _GAP = 20, 18, 10
_LONGEST = 0.72  # of the width, so that the longest bar leaves room for its figure


@dataclass(frozen=True)
class Bar:
    """A value with its standard error and how the two are written."""

    value: float
    error: float | None
    written: str


@dataclass(frozen=True)
class BarGroup:
    """The bars of one thing, one for each series, None where it was not measured. bound: what none can be above. asked: what
    is to be reached. remark: at the right end of the group's heading."""

    label: str
    remark: str
    bars: tuple[Bar | None, ...]
    bound: float | None = None
    asked: float | None = None


@dataclass(frozen=True)
class BarChart:
    """What is drawn. unit: of the values, all above zero. bound_name, asked_name: what the legend calls the marks."""

    title: str
    unit: str
    series: tuple[str, ...]
    groups: Sequence[BarGroup]
    bound_name: str = "bound"
    asked_name: str = "asked for"

    def draw(self) -> Chart:
        """The chart; its description names every figure."""
        top = legend(self._legend())
        most = max((value for group in self.groups for value in _values(group)), default=1.0) or 1.0
        height = _LABEL + len(self.series) * _BAR + _GAP
        body = top.body
        for number, group in enumerate(self.groups):
            body += _group(group, _LONGEST / most, top.height + number * height, len(self.series))
        return Chart(self.title, self._description(), top.height + len(self.groups) * height, body)

    def _legend(self) -> list[LegendEntry]:
        entries = [LegendEntry(bar_mark(number), name) for number, name in enumerate(self.series)]
        if any(group.bound is not None for group in self.groups):
            entries.append(LegendEntry(limit_mark(), self.bound_name))
        if any(group.asked is not None for group in self.groups):
            entries.append(LegendEntry(diamond(), self.asked_name))
        return entries

    def _description(self) -> str:
        said = []
        for group in self.groups:
            figures = [
                f"{name} {bar.written}" for name, bar in zip(self.series, group.bars, strict=True) if bar is not None
            ]
            figures += [f"{self.bound_name} {group.bound:.4g}"] if group.bound is not None else []
            figures += [f"{self.asked_name} {group.asked:.4g}"] if group.asked is not None else []
            said.append(f"{group.label}: {', '.join(figures)}.")
        return f"{self.unit}. {' '.join(said)}"


def _values(group: BarGroup) -> list[float]:
    bars = [bar.value + (bar.error or 0.0) for bar in group.bars if bar is not None]
    return bars + [value for value in (group.bound, group.asked) if value is not None]


def _group(group: BarGroup, factor: float, top: float, series: int) -> str:
    parts = [
        text(shortened(group.label, 44 - len(group.remark)), x="0", y=top + 14, class_="strong"),
        text(group.remark, x="100%", y=top + 14, class_="muted", anchor="end"),
    ]
    for number, bar in enumerate(group.bars):
        y = top + _LABEL + number * _BAR
        if bar is None:
            parts.append(text("not measured", x="0", y=y + 11, class_="muted"))
            continue
        width = percent(bar.value * factor)
        parts.append(element("rect", x=0, y=y + 1, width=width, height=_BAR - 6, class_=series_class(number)))
        after = bar.value * factor
        if bar.error:
            low, high = (percent((bar.value + side * bar.error) * factor) for side in (-1, 1))
            parts.append(element("line", x1=low, x2=high, y1=y + 7, y2=y + 7, class_="error"))
            after += bar.error * factor
        marks = [mark * factor for mark in (group.bound, group.asked) if mark is not None]
        after = max([after, *(mark for mark in marks if mark - after < 0.2 and mark > after - 0.05)])
        parts.append(text(bar.written, x=percent(after), y=y + 11, dx=9))
    foot = top + _LABEL + series * _BAR
    if group.bound is not None:
        place = percent(group.bound * factor)
        parts.append(element("line", x1=place, x2=place, y1=top + _LABEL - 2, y2=foot - 2, class_="limit"))
    if group.asked is not None:
        parts.append(diamond(percent(group.asked * factor), foot - _BAR + 7, 5))
    return element("g", "".join(parts))
