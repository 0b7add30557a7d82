"""What codefuse-evaluation does in a language, oddities included (as of April 2025): its processors and its assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qtk.bench.accuracy.task import Task


@dataclass(frozen=True)
class CodefuseRules:
    """A language in codefuse-evaluation.

    fence: its word for the language behind the opening fence. header: lines before every program. ends_before and
    ends_behind: where the processor of CodeFuse-CodeLlama-34B cuts an answer: before, or behind, the first line that
    matches.
    """

    fence: str
    header: str = ""
    ends_before: re.Pattern[str] | None = None
    ends_behind: re.Pattern[str] | None = None

    def source(self, task: Task, answer: str) -> str:
        """The source before the tests, as `process_humaneval_test` puts it together."""
        return f"{self.header}{task.prompt}\n{answer}"

    def cut(self, answer: str) -> str:
        """The answer to where `_process_generation` cuts it; every line of it ends in a line break."""
        kept = []
        for line in answer.split("\n"):
            if self.ends_before and self.ends_before.match(line):
                break
            kept.append(line + "\n")
            if self.ends_behind and self.ends_behind.fullmatch(line):
                break
        return "".join(kept)
