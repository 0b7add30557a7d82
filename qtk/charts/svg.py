"""SVG as text: elements with their attributes escaped, and a chart that stands in a page or in a file of its own.

Horizontal places are percentages of the chart's width and vertical ones are pixels. So a chart fills a phone and a desk, and its
text keeps its size on both. Source: Scalable Vector Graphics (SVG) 2, W3C.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from qtk.charts.palette import chart_style

_FILE_WIDTH = 720
_MARGIN = 16
_CHARACTER = 6.7  # pixels, of a character of 12 px on average


def element(name: str, content: str = "", **attributes: str | float | None) -> str:
    """One element. `content` is SVG already; values of attributes are escaped, and those that are None are left out.
    class_ is written as class, and stroke_width as stroke-width."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(words: str, *, x: str, y: float, class_: str = "", anchor: str = "start", dx: float | None = None) -> str:
    """A line of text with its baseline at y. anchor: which end of it lies at x."""
    return element("text", html.escape(words), x=x, y=y, dx=dx, class_=class_ or None, text_anchor=anchor)


def percent(share: float) -> str:
    """A place on the width, of a share of it between 0 and 1."""
    return f"{100 * share:.2f}%"


def text_width(words: str) -> float:
    """About how many pixels wide a line of 12 px text is."""
    return len(words) * _CHARACTER


def shortened(words: str, characters: int) -> str:
    """The words with their middle left out where there are more than so many characters."""
    if len(words) <= characters:
        return words
    head = (characters - 1) * 2 // 3
    return f"{words[:head]}…{words[len(words) - (characters - 1 - head) :]}"


def _value(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Chart:
    """A drawing with its words. title, description: what it shows, for those who do not see it. height: in pixels. body: SVG,
    as wide as the chart."""

    title: str
    description: str
    height: float
    body: str

    def inline(self, name: str) -> str:
        """For a page whose style holds `chart_style()`. name: of the chart, one of its own in the page."""
        words = element("title", html.escape(self.title), id=f"{name}-title")
        words += element("desc", html.escape(self.description), id=f"{name}-description")
        return element(
            "svg", words + self.body,
            class_="chart", role="img", aria_labelledby=f"{name}-title", aria_describedby=f"{name}-description",
            width="100%", height=self.height,
        )  # fmt: skip

    def file(self) -> str:
        """A file of its own, which follows the reader's light or dark theme."""
        width, height = _FILE_WIDTH, self.height + 2 * _MARGIN
        words = element("title", html.escape(self.title)) + element("desc", html.escape(self.description))
        inner = element(
            "svg", self.body, x=_MARGIN, y=_MARGIN, width=width - 2 * _MARGIN, height=self.height, overflow="visible"
        )
        return element(
            "svg", words + element("style", chart_style()) + element("rect", class_="paper", width="100%", height="100%") + inner,
            xmlns="http://www.w3.org/2000/svg", class_="chart", role="img", width=width, height=height,
        ) + "\n"  # fmt: skip
