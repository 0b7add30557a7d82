"""The legend of a chart: what each kind of mark is, in as many lines as it takes on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.svg import element, shortened, text, text_width

SERIES = 4  # kinds of marks; later series repeat them
_NARROW = 326.0  # pixels of a chart on a small phone
_LINE = 20


@dataclass(frozen=True)
class LegendEntry:
    """A mark with its name. mark: SVG in a field of 14 x 14 pixels with its middle at 0, 0."""

    mark: str
    name: str


@dataclass(frozen=True)
class Legend:
    """The legend as SVG, and its height in pixels."""

    body: str
    height: float


def legend(entries: Sequence[LegendEntry]) -> Legend:
    """The entries from left to right, on as many lines as they need."""
    parts, x, line = [], 0.0, 0
    for entry in entries:
        name = shortened(entry.name, 42)
        width = 20 + text_width(name) + 14
        if x and x + width > _NARROW:
            x, line = 0.0, line + 1
        middle = line * _LINE + 8
        parts.append(element("g", entry.mark, transform=f"translate({x + 7:.1f} {middle})"))
        parts.append(text(name, x=f"{x + 20:.1f}", y=middle + 4))
        x += width
    return Legend("".join(parts), (line + 1) * _LINE + 6 if entries else 0)


def series_class(number: int) -> str:
    """The class of the series of that number, from 0: hollow, filled, dashed, filled otherwise."""
    return f"series-{number % SERIES}"


def bar_mark(number: int) -> str:
    """The mark of a series of bars."""
    return element("rect", x=-6, y=-5, width=12, height=10, class_=series_class(number))


def line_mark(number: int) -> str:
    """The mark of a series of lines."""
    return element("polyline", points="-7,0 7,0", class_=series_class(number))


def limit_mark() -> str:
    """The mark of a limit: an upright dashed line."""
    return element("line", x1=0, x2=0, y1=-7, y2=7, class_="limit")


def diamond(x: str = "0", y: float = 0, size: float = 5) -> str:
    """A diamond: a published figure, or one that is asked for."""
    shape = element("path", d=f"M0 {-size}L{size} 0L0 {size}L{-size} 0Z", class_="published")
    return element("svg", shape, x=x, y=y, overflow="visible")


def series_point(number: int, x: str = "0", y: float = 0) -> str:
    """The point of a series: a circle in even ones, a square in odd ones."""
    if number % 2 == 0:
        return element("circle", cx=x, cy=y, r=4.5, class_=series_class(number))
    square = element("rect", x=-4, y=-4, width=8, height=8, class_=series_class(number))
    return element("svg", square, x=x, y=y, overflow="visible")
