"""The report's page: the verdict first, everything from files escaped, nothing fetched, nothing wider than the screen."""

from __future__ import annotations

import functools
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.browser import CHROMIUM, browser_tab
from support.made_up_run import HOSTILE, made_up_run

from qtk.release.gates import judge
from qtk.release.material import reportable_directories
from qtk.release.page import PAGE_NAME
from qtk.release.report import write_report


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a long release, made up."""
    folder = tmp_path_factory.mktemp("release")
    gates = made_up_run(folder)
    judged = functools.partial(judge, "made-up", gates)
    write_report(reportable_directories(folder), folder / "report", title=f"Release {HOSTILE}", judge=judged)
    return folder / "report" / PAGE_NAME


@pytest.fixture(scope="module")
def elements(page_file: Path) -> Elements:
    return Elements(page_file.read_text(encoding="utf-8"))


def test_the_verdict_comes_first(elements: Elements) -> None:
    text = " ".join(" ".join(elements.words).split())
    assert text.index("Do not ship") < text.index("KL divergence") < text.index("at least 21")
    for heading in ("Size", "Accuracy change", "KL divergence", "Speed", "Memory"):
        assert heading in text
    for section in ("Accuracy", "Latency by shape", "Error by layer", "Commands", "Environment", "Untested"):
        assert section in text


def test_what_comes_from_files_is_text(elements: Elements) -> None:
    assert {tag for tag, _ in elements.found} & {"script", "img", "iframe", "link", "object"} == set()
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert HOSTILE in "".join(elements.words)


def test_the_page_names_nothing_that_it_would_fetch(elements: Elements) -> None:
    places = [
        attributes.get(name) for _, attributes in elements.found for name in ("src", "href", "xlink:href", "data")
    ]
    assert [place for place in places if place and not place.startswith("#")] == []


def test_every_anchor_leads_somewhere(elements: Elements) -> None:
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    wanted = {str(attributes["href"])[1:] for tag, attributes in elements.found if tag == "a" and "href" in attributes}
    assert wanted <= set(names)


def test_a_run_without_gates_is_not_called_good(tmp_path: Path) -> None:
    made_up_run(tmp_path, blocks=2)
    write_report(reportable_directories(tmp_path), tmp_path / "report", title="bare")
    text = (tmp_path / "report" / PAGE_NAME).read_text(encoding="utf-8")
    assert "Do not ship" not in text
    assert ">Ship<" not in text
    assert "gates" in " ".join(Elements(text).words)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_it_without_overflow_or_network(page_file: Path, tmp_path: Path) -> None:
    with browser_tab(tmp_path / "profile") as tab:
        for width in (390, 1280):
            for dark in (False, True):
                tab.show(page_file, width=width, dark=dark)
                assert tab.value("document.documentElement.scrollWidth") == width
                beyond = "[...document.querySelectorAll('h1,h2,h3,p,dl,ul,figure,svg,.scroll,pre')]"
                beyond += (
                    f".filter(e => e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"
                )
                wide = f"{beyond}.filter(text => !text.includes('scroll'))"
                assert tab.value(wide) == []
        assert set(tab.requests) == {page_file.resolve().as_uri()}
