"""One bar of parts that add up to a whole, beside what there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.charts.legend import limit_mark
from qtk.charts.svg import Chart, element, percent, shortened, text

_LABEL, _BAR = 20, 12


@dataclass(frozen=True)
class StackPart:
    """A part: its size, and how that is written."""

    name: str
    size: float
    written: str


@dataclass(frozen=True)
class StackChart:
    """What is drawn: each part as a bar that begins where the one before it ends. room: what all of them have to fit in."""

    title: str
    parts: Sequence[StackPart]
    total: StackPart
    room: StackPart | None

    def draw(self) -> Chart:
        """The chart; its description names every figure."""
        whole = max(self.total.size, self.room.size if self.room else 0.0) or 1.0
        body, start, height = "", 0.0, _LABEL + _BAR + 8
        for number, part in enumerate(self.parts):
            body += _part(part, start / whole, part.size / whole, number * height)
            start += part.size
        end = len(self.parts) * height
        body += _part(self.total, 0.0, self.total.size / whole, end, "series-0")
        foot = end + height
        if self.room is not None:
            place = percent(self.room.size / whole)
            for number in range(len(self.parts) + 1):
                top = number * height + _LABEL - 2
                body += element("line", x1=place, x2=place, y1=top, y2=top + _BAR + 4, class_="limit")
            body += element("g", limit_mark(), transform=f"translate(7 {foot + 8})")
            body += text(f"{self.room.name}: {self.room.written}", x="20", y=foot + 12)
            foot += 24
        return Chart(self.title, self._description(), foot, body)

    def _description(self) -> str:
        parts = [*self.parts, self.total, *([self.room] if self.room else [])]
        return "; ".join(f"{part.name}: {part.written}" for part in parts)


def _part(part: StackPart, start: float, share: float, top: float, style: str = "series-1") -> str:
    return (
        text(shortened(part.name, 50 - len(part.written)), x="0", y=top + 13)
        + text(part.written, x="100%", y=top + 13, anchor="end", dx=-6)
        + element("rect", x=percent(start), y=top + _LABEL, width=percent(share), height=_BAR, class_=style)
    )
