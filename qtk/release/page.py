"""The report as one HTML page that needs nothing else: no script, no network, its charts inside it.

Everything that comes from a file is escaped by the template's autoescape; what is marked as safe is SVG and CSS that qtk wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qtk.bench.accuracy.results.score import Cell
from qtk.bench.accuracy.results.tables import ResultTable
from qtk.charts.palette import chart_style
from qtk.charts.svg import shortened
from qtk.release.drawings import Drawings
from qtk.release.findings import Findings
from qtk.release.gate_files import gate_line
from qtk.release.numbers import MINUS, figure
from qtk.sizes import gpu_size_text, size_text
from qtk.wording import counted

PAGE_NAME = "report.html"
_STYLE = "report.css"


@dataclass(frozen=True)
class Tone:
    """How a verdict looks: its colours' name and its sign, so that it is read without colour too."""

    colours: str
    sign: str


_TONES = {
    "ship": Tone("good", "✓"),
    "passed": Tone("good", "✓"),
    "do not ship": Tone("bad", "✕"),
    "failed": Tone("bad", "✕"),
    "not measured": Tone("unknown", "?"),
    "too little evidence": Tone("unknown", "?"),
    "no gates": Tone("unknown", "–"),
    "within tolerance": Tone("good", "✓"),
    "beyond tolerance": Tone("bad", "✕"),
    "too few tasks to tell": Tone("unknown", "?"),
}


def page(found: Findings, drawn: Drawings) -> str:
    """The page's HTML."""
    loader = PackageLoader("qtk.release")
    environment = Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=True
    )
    environment.filters |= {
        "size": size_text,
        "gpu_size": gpu_size_text,
        "counted": counted,
        "figure": figure,
        "last_name": lambda path: path.rsplit("/", 1)[-1],
        "cell": _cell,
        "full_columns": _full_columns,
        "is_number": _is_number,
        "gate_line": gate_line,
        "tone": lambda verdict: _TONES.get(verdict),
        "inline": lambda chart, name: Markup(chart.inline(name)),  # noqa: S704 - our own SVG, its texts escaped
        "slug": _slug,
        "shortened": shortened,
    }
    style = loader.get_source(environment, _STYLE)[0]
    return environment.get_template(f"{PAGE_NAME}.j2").render(
        found=found,
        material=found.material,
        drawn=drawn,
        style=Markup(chart_style() + style),  # noqa: S704 - our own CSS
        subtitle=_subtitle(found),
    )


def _subtitle(found: Findings) -> list[str]:
    """What was released, for which machine, and when: a line of short facts."""
    facts = []
    material = found.material
    if material.engines:
        engine = material.engines[-1].description
        facts.append(f"{engine.architecture} as an engine for {engine.gpu} ({engine.backend})")
    for model in material.quantized[-1:]:
        facts.append(f"{model.facts['bits']} bits by {model.facts['method']}, groups of {model.facts['group_size']}")
    ended = max((made.manifest.ended for made in material.made), default="")
    facts += [f"finished {ended[:16].replace('T', ' ')} UTC"] if ended else []
    return [*facts, f"qtk {found.version}"]


def _cell(value: Cell, column: str) -> str:
    """A cell as in the Markdown, with a real minus."""
    if value is None or isinstance(value, float):
        return figure(value, 2 if column.startswith("±") else 4).replace("-", MINUS, 1) if value else figure(value)
    return str(value).replace("-", MINUS) if column == "limits" else str(value)


def _full_columns(table: ResultTable) -> ResultTable:
    """The table without the columns in which no line says anything."""
    kept = [place for place in range(len(table.columns)) if any(row[place] not in (None, "") for row in table.rows)]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    return ResultTable(table.title, tuple(table.columns[place] for place in kept), rows)


def _is_number(table: ResultTable, index: int) -> bool:
    return all(isinstance(row[index], int | float) or row[index] is None for row in table.rows)


def _slug(words: str) -> str:
    """The words as the id of an element."""
    return "".join(character if character.isalnum() and character.isascii() else "-" for character in words)
