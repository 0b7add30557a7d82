"""How answers in a language become the source before the tests. A language that differs overrides what differs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.task import Task


@dataclass(frozen=True)
class Frame:
    """What a suite puts around the programs of a language.

    header: lines before every program. complete: the data's prompts bring all that a program needs before it, so that
    nothing is added, and lines that a program may have only once are not repeated.
    """

    header: str = ""
    complete: bool = False


@dataclass(frozen=True)
class Head:
    """What of a prompt does not belong to the function: the set-up that the tests need, and the imports."""

    setup: str = ""
    imports: str = ""


@dataclass(frozen=True)
class Assembly:
    """Makes sources of answers. main: the header of a main function, where the tests bring one of their own."""

    grammar: Grammar
    main: re.Pattern[str] | None = None

    def head(self, prompt: str) -> Head:
        """The head of a prompt that is complete. Empty where it can stay where it is."""
        return Head()

    def header(self, frame: Frame, present: str) -> str:
        """The lines before a program; `present` is what stands behind them."""
        return ""

    def continued(self, task: Task, continuation: str, frame: Frame) -> str:
        """The source when the answer continued the prompt."""
        return f"{self.header(frame, task.prompt)}{task.prompt}{continuation}"

    def whole(self, task: Task, code: str, frame: Frame) -> str:
        """The source when the code defines the function itself: the prompt's imports and helpers, then the code."""
        code = self.cleaned(code)
        preamble = self.preamble(task, code)
        if frame.complete:
            code = without_lines_of(preamble, code)
        return f"{self.header(frame, preamble + code)}{preamble}{code}"

    def cleaned(self, code: str) -> str:
        """The code of an answer without what its tests do not bear: a main function of its own."""
        if self.main is None or not isinstance(self.grammar.blocks, Braces):
            return code
        return self.grammar.blocks.without_block(code, self.main)

    def preamble(self, task: Task, code: str) -> str:
        """What of the prompt stands before the function to write, without the helpers that the code has itself."""
        found = self.grammar.found(task.entry, task.prompt)
        before = task.prompt[: found[-1].start()] if found else task.prompt
        return self.grammar.without_definitions(before, {defined.name for defined in self.grammar.definitions(code)})

    def restored(self, continuation: str) -> str:
        """A continuation with the indentation that it lost, where that matters."""
        return continuation

    def code_only(self, name: str, text: str) -> str:
        """The text, which is code that defines the function of this name, without what is not code."""
        return text


# What a source may say only once: the language line, the opening tag, imports.
_ONCE = re.compile(r"#lang\b|<\?php|use\s|import\s|package\s|require\b")


def without_lines_of(preamble: str, code: str) -> str:
    """The code without those lines of the preamble that may stand in a source only once."""
    there = {line.strip() for line in preamble.split("\n") if _ONCE.match(line.strip())}
    lines = [line for line in code.split("\n") if line.strip() not in there]
    return "\n".join(lines).lstrip("\n") if there else code
