"""The colours of charts and pages on light and dark paper, and the style of what charts are drawn with.

Text is readable on its paper by WCAG 2.1's AA: a contrast of 4.5 for words, 3 for lines and fields that carry meaning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Palette:
    """Colours as #rrggbb. paper: behind everything; panel: of a raised field; ink, muted: text; line: rules and grids, which
    carry no meaning; before, after, other, further: of what is drawn. good, bad, unknown: of verdicts, each with its field."""

    paper: str
    panel: str
    ink: str
    muted: str
    line: str
    accent: str
    before: str
    after: str
    other: str
    further: str
    good: str
    good_field: str
    bad: str
    bad_field: str
    unknown: str
    unknown_field: str

    def variables(self) -> str:
        """As custom properties of CSS."""
        return " ".join(f"--{name.replace('_', '-')}: {colour};" for name, colour in asdict(self).items())


LIGHT = Palette(
    paper="#ffffff", panel="#f5f7f9", ink="#171b21", muted="#535d69", line="#d9dfe5", accent="#0b5fa8",
    before="#6b7682", after="#0b66b4", other="#a8501a", further="#6f3fa0",
    good="#0f6a3c", good_field="#e6f4ec", bad="#a9211d", bad_field="#fcebea", unknown="#7a4d00", unknown_field="#fdf3de",
)  # fmt: skip
DARK = Palette(
    paper="#10141a", panel="#181e26", ink="#e7ebf0", muted="#a3aeba", line="#2d3640", accent="#74b6f2",
    before="#8f9ba8", after="#58a6ee", other="#e3985f", further="#bd97e6",
    good="#6fd39c", good_field="#12291d", bad="#ff938c", bad_field="#341917", unknown="#e9b85e", unknown_field="#2e2412",
)  # fmt: skip

_MARKS = """
.chart { font: 12px/1 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums; }
.chart text { fill: var(--ink); }
.chart .muted { fill: var(--muted); }
.chart .strong { font-weight: 600; }
.chart .paper { fill: var(--paper); }
.chart .grid { stroke: var(--line); }
.chart .limit { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 4 3; }
.chart .error { stroke: var(--ink); stroke-width: 1.5; }
.chart .published { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
.chart polyline { fill: none; vector-effect: non-scaling-stroke; stroke-width: 1.5; }
.chart .series-0 { fill: var(--paper); stroke: var(--before); stroke-width: 2; }
.chart .series-1 { fill: var(--after); stroke: var(--after); stroke-width: 2; }
.chart .series-2 { fill: var(--paper); stroke: var(--other); stroke-width: 2; stroke-dasharray: 3 2; }
.chart .series-3 { fill: var(--further); stroke: var(--further); stroke-width: 2; }
.chart polyline.series-0 { fill: none; stroke-dasharray: 4 3; }
.chart polyline.series-1 { fill: none; stroke-dasharray: none; }
.chart .whisker { stroke-dasharray: none; }
""".strip()


def theme_style() -> str:
    """The colours as CSS for any page: light, and dark on screens whose reader prefers it."""
    return (
        f":root {{ color-scheme: light dark; {LIGHT.variables()} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK.variables()} }} }}"
    )


def chart_style() -> str:
    """The style of charts, with their colours, as CSS."""
    return f"{theme_style()}\n{_MARKS}"


def contrast(one: str, other: str) -> float:
    """The ratio of the luminances of two colours, 1 to 21. Source: WCAG 2.1, "contrast ratio" and "relative luminance"."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
