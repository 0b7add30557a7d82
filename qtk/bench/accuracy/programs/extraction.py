"""qtk's own way from a model's answer to a program, aware of the language.

(1) If the answer begins with code that defines the function, that is used. (2) Else a fenced block, if there is one.
(3) If the code defines the function that was asked for, it is used whole, with the prompt's imports and helpers before
it. (4) Else it continues the prompt, and is cut where the function ends.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Literal

from qtk.bench.accuracy.languages.definitions import defines, end_with_helpers, whole_end
from qtk.bench.accuracy.languages.source_scan import BRACED, block_end, indented_end, last_line_end, open_braces
from qtk.bench.accuracy.programs.assemble import continued, whole
from qtk.bench.accuracy.programs.whole_answers import code_part, python_part, whole_source
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task

How = Literal["fenced", "whole", "continuation", "reference"]
# A fence closes in a line of its own, or at the end of the code's last line, or not at all where the answer was cut short.
_FENCE = re.compile(r"```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(\n[ \t]*```|```[ \t]*(?=\n|\Z)|\Z)", re.DOTALL)
_TAGS = {
    "python": {"python", "py", "python3"},
    "cpp": {"cpp", "c++", "cc", "c"},
    "java": {"java"},
    "javascript": {"javascript", "js", "node"},
    "go": {"go", "golang"},
    "rust": {"rust", "rs"},
    "julia": {"julia", "jl"},
    "racket": {"racket", "rkt", "scheme", "lisp"},
    "perl": {"perl", "pl"},
    "ruby": {"ruby", "rb"},
    "bash": {"bash", "sh", "shell"},
}


@dataclass(frozen=True)
class Extracted:
    """The source before the tests, and by which of the rules it came about."""

    source: str
    how: How


def extract(suite: Suite, task: Task, answer: str) -> Extracted:
    """The program of an answer."""
    answer = _before_closing_fence(answer)
    before, fence, _ = answer.partition("```")
    if defines(before, task) and (not fence or _ended(task, before, fence)[0] is not None):
        return Extracted(whole_source(suite, task, code_part(before, task)), "whole")
    block = fenced_block(answer, task)
    code = block if block is not None else answer
    if suite.layout == "mbpp":
        if block is None:
            return Extracted(whole(suite, task, python_part(code, task), ""), "whole")
        return Extracted(whole_source(suite, task, code), "fenced")
    if defines(code, task):
        if block is None:
            code = code_part(code, task)
        return Extracted(whole_source(suite, task, code), "fenced" if block is not None else "whole")
    return Extracted(
        continued(suite, task, continuation(task, code)), "fenced" if block is not None else "continuation"
    )


def _ended(task: Task, before: str, fence: str) -> tuple[int | None, bool]:
    """Where the function ends that stands before a fence; the line that the fence begins is the one behind it."""
    return whole_end(task, f"{before}{fence}\n" if fence else before)


_INDENTED = re.compile(r"\s*?^(?:\t| {2,})\S", re.MULTILINE)


def _before_closing_fence(answer: str) -> str:
    """An answer that begins as the indented continuation of code is over at a fence, which closes what the prompt began.

    One blank is no indentation: many tokenizers put it before the first word of an answer.
    """
    before, fence, _ = answer.partition("```")
    return before if fence and _INDENTED.match(before) else answer


def _blocks(answer: str, task: Task) -> list[tuple[str, bool, bool]]:
    """The fenced blocks in this language or in none: code, whether it is tagged, and whether it is certainly closed."""
    tags, found = _TAGS.get(task.language, {task.language}), []
    for block in _FENCE.finditer(answer):
        tag = block.group(1).lower()
        closed = block.group(3).startswith("\n") or (block.group(3) != "" and block.end() < len(answer))
        if tag in tags or not tag:
            found.append((block.group(2) + "\n", tag in tags, closed))
    return found


def fenced_block(answer: str, task: Task) -> str | None:
    """The fenced block to use: the first that defines the function, else the first tagged with the language, else the first."""
    blocks = _blocks(answer, task)
    if not blocks:
        return None
    defining = [code for code, _, _ in blocks if defines(code, task)]
    tagged = [code for code, ours, _ in blocks if ours]
    return next(iter([*defining, *tagged]), blocks[0][0])


def continuation(task: Task, text: str) -> str:
    """The part of the text that continues the prompt: to where the function ends, and the helpers of its own behind it."""
    if task.language == "python":
        text = _indented(text)
    end, _ = _function_end(task, text)
    if end is None and task.closing:  # another harness took it off, or the answer was cut short
        return text.rstrip("\n") + "\n" + task.closing
    return text if end is None else text[:end].rstrip("\n") + "\n"


def _indented(text: str) -> str:
    """A body that lost its indentation gets it back: in its first line alone, or in all of them."""
    lines = text.split("\n")
    code = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    if not code or lines[code[0]][0].isspace():
        return text
    if len(code) > 1 and lines[code[1]][0].isspace():
        first = "\n".join([*lines[: code[0]], f"    {lines[code[0]]}", *lines[code[0] + 1 :]])
        if _is_body(first[: indented_end(first)]):
            return first
    every = [f"    {line}" if line.strip() else line for line in lines]
    # Words behind the body were indented with it: as many lines as make a body.
    wanted = next((count for count in range(len(every), 0, -1) if _is_body("\n".join(every[:count]))), len(every))
    return "\n".join(every[:wanted]) + "\n"


def _is_body(text: str) -> bool:
    try:
        return len(ast.parse(f"def body():\n{text}\n").body) == 1
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def certain_end(suite: Suite, task: Task, text: str, *, chat: bool) -> bool:
    """Whether nothing that could still be generated would change what `extract` takes: generation may stop."""
    if _before_closing_fence(text) != text:
        return True
    before, fence, _ = text.partition("```")
    if defines(before, task) and (not fence or _ended(task, before, fence)[0] is not None):
        return _ended(task, before, fence)[1]
    if fence:
        return any(closed and defines(code, task) for code, _, closed in _blocks(text, task))
    if chat or suite.layout == "mbpp":
        return False
    return _function_end(task, text)[1]


def _function_end(task: Task, text: str) -> tuple[int | None, bool]:
    """Where the function ends that the text continues, helpers included that it uses; and whether that is certain."""
    depth = open_braces(task.prompt, task.language) if task.language in BRACED else 1
    end = _block_end(task, text, 1 if task.closing else depth)  # the tests' closing is never more than one block's
    return (None, False) if end is None else end_with_helpers(task, text, end)


def _block_end(task: Task, text: str, depth: int) -> int | None:
    if task.language == "python":
        return indented_end(text)
    return block_end(text, task.language, depth) if task.language in BRACED else last_line_end(text, task.language)
