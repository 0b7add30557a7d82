"""Words on the page and in charts are readable on their paper: WCAG 2.1, AA."""

from __future__ import annotations

import pytest

from qtk.charts.palette import DARK, LIGHT, Palette, chart_style, contrast

WORDS = [(ink, paper) for ink in ("ink", "muted", "accent") for paper in ("paper", "panel")]
WORDS += [(tone, f"{tone}_field") for tone in ("good", "bad", "unknown")]
MARKS = [(series, "paper") for series in ("before", "after", "other", "further")]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("over", "under", "least"), [*((*pair, 4.5) for pair in WORDS), *((*pair, 3.0) for pair in MARKS)]
)
def test_what_is_read_stands_out(palette: Palette, over: str, under: str, least: float) -> None:
    assert contrast(getattr(palette, over), getattr(palette, under)) >= least


def test_contrast_is_the_ratio_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#ffffff", "#ffffff") == 1


def test_the_style_has_both_papers() -> None:
    assert LIGHT.variables() in chart_style()
    assert "prefers-color-scheme: dark" in chart_style()
    assert DARK.variables() in chart_style()
