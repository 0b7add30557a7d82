"""The answer rules of two published harnesses, kept as they are, oddities included, for comparing with published numbers.

codefuse: codefuse-evaluation (processor and `process_humaneval_test`), as of April 2025.
bigcode: bigcode-evaluation-harness, tasks humaneval, mbpp and multiple-LANG, as of July 2025.
"""

from __future__ import annotations

import re

from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.programs.assemble import cpp_includes
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task
from qtk.errors import InputError

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
_GO_PACKAGES = ("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand", "crypto/md5")
BIGCODE_STOP = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"),
    "mbpp": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    "multipl-e": ("<file_sep>",),  # and the data's own
}


# Seconds of a program's run, of its tests alone. codefuse-evaluation gives every sample the same; of
# bigcode-evaluation-harness those of its HumanEval, MBPP, and MultiPL-E languages.
_CODEFUSE_SECONDS = 120.0
_BIGCODE_SECONDS = {"humaneval": 3.0, "mbpp": 3.0, "multipl-e": 15.0}
_BIGCODE_LANGUAGE_SECONDS = {"javascript": 5.0, "go": 30.0, "rust": 5.0, "swift": 5.0, "julia": 5.0, "r": 5.0}


def as_the_harness(suite: Suite, rules: Rules) -> Suite:
    """The suite with the harness's own clocks and, in codefuse's MBPP, its challenge tests. InputError: no such rules."""
    if rules == "qtk" or suite.kind != "programs":
        return suite
    require_rules(suite, rules)
    if rules == "codefuse":
        challenge = suite.challenge_tests or suite.layout == "mbpp"
        return suite.model_copy(update={"seconds": _CODEFUSE_SECONDS, "challenge_tests": challenge})
    languages = suite.languages
    if suite.layout == "multipl-e":
        own = _BIGCODE_LANGUAGE_SECONDS
        languages = {
            name: one.model_copy(update={"settings": {**one.settings, "seconds": own[name]}}) if name in own else one
            for name, one in languages.items()
        }
    return suite.model_copy(update={"seconds": _BIGCODE_SECONDS[suite.layout], "languages": languages})


def codefuse_answer(task: Task, text: str) -> str:
    """What codefuse-evaluation keeps of an answer (`_post_process_mkcode`, then `_process_generation`)."""
    tag = "js" if task.language == "javascript" else task.language
    block = re.search(rf"```(?:{re.escape(task.language)}|{tag})(.*?)```", text, re.DOTALL | re.IGNORECASE)
    if block:
        text = block.group(1)
    if "import" in text and "  import" not in text:
        text = _behind_docstring(text)
    text = text.replace("<|endoftext|>", "")
    return _first_function(text, task.language)


def _behind_docstring(text: str) -> str:
    for quote in ('"""', "'''"):
        parts = text.split(quote)
        if len(parts) >= 3:
            return quote.join(parts[2:])
    return "\n".join(line for line in text.split("\n") if not line.startswith(("def", "from", "import")))


def _first_function(text: str, language: str) -> str:
    kept: list[str] = []
    for line in text.split("\n"):
        if language == "python" and line.strip() and not line[0].isspace():
            break
        if language == "cpp" and line.startswith("int main"):
            break
        kept.append(line)
        if language in ("javascript", "java", "go", "rust") and line in ("}", "};"):
            break
    return "\n".join(kept)


def codefuse_source(suite: Suite, task: Task, text: str) -> str:
    """The source before the tests, as `process_humaneval_test` puts it together (MBPP: its nl2code branch)."""
    if suite.layout == "mbpp":
        block = re.search(r"```(.*?)```", text, re.DOTALL)
        code = block.group(1).replace("python", " ") if block else text
        return f"{_CODEFUSE_HEADER}{code}\n{task.setup}\n"
    prompt = task.prompt + "\n"
    answer = codefuse_answer(task, text)
    if task.language == "python":
        answer = _drop_top_level(answer)
        return _CODEFUSE_HEADER + (answer if answer.startswith("def") else prompt + answer) + "\n"
    if task.language == "cpp":
        return cpp_includes(task.prompt) + prompt + answer
    if task.language == "go":
        there = task.setup
        extra = [path for path in _GO_PACKAGES if path not in there and f"{path.rsplit('/', 1)[-1]}." in answer]
        imports = "import (\n" + "".join(f'    "{path}"\n' for path in extra) + ")\n" if extra else ""
        return f"{task.setup}\n{imports}{prompt.replace(task.imports, '')}{answer}"
    return f"{prompt}{answer}"


def _drop_top_level(answer: str) -> str:
    """Lines that start in column 0 go, but `def` (from its first "def " on) and class headers."""
    kept = []
    for line in answer.split("\n"):
        if not line.strip() or line[0].isspace() or (line.startswith("class") and line.rstrip().endswith(":")):
            kept.append(line)
        elif "def " in line:
            kept.append("def " + line.split("def ", 1)[1])
        elif "class" in line and line.rstrip().endswith(":"):
            kept.append(line)
    return "\n".join(kept)


def bigcode_source(suite: Suite, task: Task, text: str) -> str:
    """Cut at the earliest stop string; HumanEval's prompt stripped of blanks at its ends."""
    stops = bigcode_stops(suite, task)
    ends = [index for stop in stops if (index := text.find(stop)) >= 0]
    text = text[: min(ends)] if ends else text
    if suite.layout == "mbpp":
        return f"{text}\n{task.setup}\n"
    return f"{task.prompt.strip()}{text}\n{task.closing}"


def require_rules(suite: Suite, rules: Rules) -> None:
    """InputError for a suite that the harness has no such task for."""
    if rules == "bigcode" and suite.layout not in BIGCODE_STOP:
        raise InputError(
            f"--compat bigcode has no rules for suite {suite.name}; it knows humaneval, mbpp and multipl-e."
        )
    if rules == "codefuse" and suite.layout == "multipl-e":
        raise InputError(f"--compat codefuse has no rules for suite {suite.name}; --compat bigcode has.")


def bigcode_stops(suite: Suite, task: Task) -> tuple[str, ...]:
    """The harness's stop strings, with those of the data."""
    return (*BIGCODE_STOP[suite.layout], *task.stop)
