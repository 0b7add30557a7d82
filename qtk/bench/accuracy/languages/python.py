"""Python: the program is forked from the worker's own interpreter, so it starts in milliseconds."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from qtk.bench.accuracy.languages.assembly import Assembly, Frame
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement, Toolchain, Verdict, new_sentinel
from qtk.bench.accuracy.languages.blocks import Indentation, indented_end
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.languages.python_tests import tests_apart
from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.task import Task
from qtk.sandbox.answer_process import MEMORY_ERROR_EXIT, SYNTAX_ERROR_EXIT
from qtk.sandbox.job import Job, ProgramOutcome

_CODE_START = re.compile(
    r"^(?:def |class |import |from \w+(?:\.\w+)* import|@\w|async def |[A-Za-z_]\w* *=[^=])", re.MULTILINE
)
_FUTURE = re.compile(r"^from\s+__future__\s+import\s[^\n]*\n", re.MULTILINE)
# What an example of use begins with, in column 0 behind the function: never a part of the function.
_BEHIND = re.compile(r"^(?:assert|print|if|class|\"\"\"|'''|<\||```)", re.MULTILINE)


class _Assembly(Assembly):
    """Cuts by what parses, gives lost indentation back, and puts `from __future__` lines first."""

    def header(self, frame: Frame, present: str) -> str:
        return "" if frame.complete else frame.header

    def whole(self, task: Task, code: str, frame: Frame) -> str:
        # Python wants these lines before everything else.
        return "".join(_FUTURE.findall(code)) + super().whole(task, _FUTURE.sub("", code), frame)

    def restored(self, continuation: str) -> str:
        """A body that lost its indentation gets it back: in its first line alone, or in all of them."""
        lines = continuation.split("\n")
        code = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")]
        if not code or lines[code[0]][0].isspace():
            return continuation
        if len(code) > 1 and lines[code[1]][0].isspace():
            first = "\n".join([*lines[: code[0]], f"    {lines[code[0]]}", *lines[code[0] + 1 :]])
            if _is_body(first[: indented_end(first)]):
                return first
        every = [f"    {line}" if line.strip() else line for line in lines]
        # Words behind the body were indented with it: as many lines as make a body.
        wanted = next((count for count in range(len(every), 0, -1) if _is_body("\n".join(every[:count]))), len(every))
        return "\n".join(every[:wanted]) + "\n"

    def code_only(self, name: str, text: str) -> str:
        """From the first line that looks like code, as many lines as parse; no example of use behind the function."""
        begins = _CODE_START.search(text)
        text = text[begins.start() :] if begins else text
        found = next(iter(self.grammar.found(name, text)), None)
        behind = _BEHIND.search(text, found.end()) if found and self.grammar.end_of(name, text).index is None else None
        if behind and _parses(text[: behind.start()]):  # a docstring may have such a line in column 0
            text = text[: behind.start()]
        lines = text.split("\n")
        for count in range(len(lines), 0, -1):
            if _parses("\n".join(lines[:count])):
                code = "\n".join(lines[:count]) + "\n"
                # Words before it that look like code, and do not parse with it, must not cost the function.
                return (
                    code if found is None or found.start() < len(code) else self.code_only(name, text[found.start() :])
                )
        return "\n".join(lines)


def _is_body(text: str) -> bool:
    try:
        return len(ast.parse(f"def body():\n{text}\n").body) == 1
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _parses(source: str) -> bool:
    """Whether the source is a Python program that says something."""
    try:
        return bool(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


_CODEFUSE_HEADER = """import math
import unittest
import re
import sys
import copy
import datetime
import itertools
import collections
import heapq
import statistics
import functools
import hashlib
import numpy
import numpy as np
import string
from typing import *
from collections import *
"""


class _CodefuseRules(CodefuseRules):
    """An answer that begins with `def` stands without the prompt."""

    def source(self, task: Task, answer: str) -> str:
        answer = _without_top_level(answer)
        return self.header + (answer if answer.startswith("def") else f"{task.prompt}\n{answer}") + "\n"


def _without_top_level(answer: str) -> str:
    """Lines that start in column 0 go, but for `def` (from its first "def " to a second) and the headers of classes."""
    kept = []
    for line in answer.split("\n"):
        indented = line.startswith((" ", "\t"))
        if "def " in line and not indented:
            kept.append("def " + line.split("def ")[1])
        elif indented or not line.strip() or ("class" in line and line.strip().endswith(":")):
            kept.append(line)
    return "\n".join(kept)


class PythonToolchain(Toolchain):
    """Solution and tests in two processes; as one script where the tests cannot do without the solution's own objects."""

    def preload(self, header: str) -> tuple[str, ...]:
        """The modules that the header imports, so that no program pays for them."""
        modules: dict[str, None] = {}
        for node in ast.walk(ast.parse(header)):
            if isinstance(node, ast.Import):
                modules |= dict.fromkeys(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules[node.module] = None
        return ("typing", "math", *modules)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        apart = tests_apart(task)
        files = {"main.py": solution if apart else f"{solution}\n{task.tests}\n"}
        step = replace(self._run(script="main.py"), apart=apart)
        return Job(files, (step,), new_sentinel(), environment, self.limits)

    def verdict(self, outcome: ProgramOutcome, rules: Rules) -> Verdict:
        if outcome.ending == "exited" and outcome.exit_code == SYNTAX_ERROR_EXIT:
            return "compile_error"
        if outcome.ending == "exited" and outcome.exit_code == MEMORY_ERROR_EXIT:
            return "out_of_memory"
        return super().verdict(outcome, rules)


PYTHON = Language(
    name="python",
    title="Python",
    short=("py",),
    tags=("py", "python3"),
    comment="#",
    assembly=_Assembly(
        Grammar(
            blocks=Indentation(),
            definition=r"^(?:async\s+)?def\s+NAME\s*\(",
            next_definition=re.compile(r"(?:async\s+)?(?:def|class)\s+(\w+)"),
            code_start=_CODE_START,
            decorator="@",
        )
    ),
    toolchain=PythonToolchain(
        vocabulary=re.compile(r"\bAssertionError\s*=|\bsettrace\b"),
        assertion_form=Assertions(
            (
                Form(
                    r"^[^\S\n]*assert\s+(?:(?:tuple|list|set|sorted|abs|round|str|math\.isclose)\()?CALLED\(",
                    r"\s*\)?\s*(?:==|-|,)\s*",
                ),
            )
        ),
        requirements=(Requirement("No module named 'numpy'", "numpy", "pip install numpy"),),
    ),
    codefuse_rules=_CodefuseRules(fence="python", header=_CODEFUSE_HEADER, ends_before=re.compile("[^ ]")),
)
