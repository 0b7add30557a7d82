"""The verdict of the gates in the forms that CI systems show: JUnit XML and a Markdown summary."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from qtk.release.gates import GateReport, GateResult

JUNIT_NAME, SUMMARY_NAME = "junit.xml", "summary.md"


def junit(report: GateReport) -> bytes:
    """JUnit's XML: a test case for each gate; what failed is a failure, what was not measured an error.

    Source: the schema that Jenkins and GitLab read.
    """
    failed = sum(result.verdict == "failed" for result in report.results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"qtk gate {report.run}",
        tests=str(len(report.results)),
        failures=str(failed),
        errors=str(len(report.failures) - failed),
    )
    for result in report.results:
        case = ElementTree.SubElement(suite, "testcase", classname="qtk.gate", name=result.name)
        if result.verdict != "passed":
            kind = "failure" if result.verdict == "failed" else "error"
            ElementTree.SubElement(case, kind, type=result.verdict, message=in_words(result))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True) + b"\n"


def summary(report: GateReport) -> str:
    """A heading with the verdict, and a table of the gates, in Markdown."""
    verdict = "ship" if report.passed else "do not ship"
    lines = [
        f"## {report.run}: {verdict}",
        "",
        "| gate | measured | ± SE | limit | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [markdown_line(row) for row in rows(report)]
    return "\n".join(lines) + "\n"


def rows(report: GateReport) -> list[GateLine]:
    """The gates as lines of a table."""
    return [gate_line(result) for result in report.results]


GateLine = tuple[str, str, str, str, str]


def gate_line(result: GateResult) -> GateLine:
    """A gate as a line of a table: gate, measured, standard error, limit, verdict."""
    return (
        result.name,
        "-" if result.measured is None else f"{_number(result.measured)} {result.unit}".strip(),
        "-" if result.standard_error is None else f"{result.standard_error:.2g}",
        result.limit,
        f"{result.verdict}{', but close to the limit' if result.uncertain else ''}"
        f"{f': {result.why}' if result.why else ''}",
    )


def markdown_line(line: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(_escaped(cell) for cell in line)} |"


def in_words(result: GateResult) -> str:
    """One gate's outcome as a sentence."""
    measured = "not measured" if result.measured is None else f"{_number(result.measured)} {result.unit}".strip()
    return f"{result.name}: {measured}, {result.limit}: {result.verdict}{f' ({result.why})' if result.why else ''}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
