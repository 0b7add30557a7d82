"""qtk's own way from a model's answer to a program, aware of the language.

(1) If the answer begins with code that defines the function, that code is used. (2) Else a fenced block, if there is one.
(3) If the code defines the function that was asked for, the code is used whole, with the prompt's imports and helpers
before it. (4) Else the code continues the prompt, and is cut where the function ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qtk.bench.accuracy.languages.grammar import OPEN, End, Grammar
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.programs.assemble import continued, whole
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.task import Task

How = Literal["fenced", "whole", "continuation"]
# A fence closes in a line of its own, or at the end of the code's last line, or not at all where the answer was cut short.
_FENCE = re.compile(r"```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(\n[ \t]*```|```[ \t]*(?=\n|\Z)|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Extracted:
    """The source before the tests, and which of the rules made it."""

    source: str
    how: How


@dataclass(frozen=True)
class Block:
    """A fenced block: its code, whether it is tagged with the task's language, and whether it is certainly closed."""

    code: str
    tagged: bool
    closed: bool


def extract(suite: Suite, task: Task, answer: str) -> Extracted:
    """The program of an answer."""
    language = language_named(task.language)
    answer = _before_closing_fence(answer)
    code = _function_before_fence(language.grammar, task, answer)
    if code is not None:
        return Extracted(whole(suite, task, code_part(code, task)), "whole")
    block = fenced_block(answer, task)
    code = answer if block is None else block
    if block is not None and (suite.layout == "mbpp" or language.grammar.defines(task.entry, code)):
        return Extracted(whole(suite, task, code), "fenced")
    if suite.layout == "mbpp":
        return Extracted(whole(suite, task, language.assembly.code_only(task.entry, code)), "whole")
    if language.grammar.defines(task.entry, code):
        return Extracted(whole(suite, task, code_part(code, task)), "whole")
    how: How = "continuation" if block is None else "fenced"
    return Extracted(continued(suite, task, continuation(task, code)), how)


def _function_before_fence(grammar: Grammar, task: Task, text: str) -> str | None:
    """What stands before the first fence, if that defines the function: in full, where there is a fence."""
    before, fence, _ = text.partition("```")
    if not grammar.defines(task.entry, before):
        return None
    return before if not fence or _end_before_fence(grammar, task, text).index is not None else None


def _end_before_fence(grammar: Grammar, task: Task, text: str) -> End:
    """Where the function ends that stands before the first fence. The fence begins the line behind the function."""
    before, fence, _ = text.partition("```")
    return grammar.end_of(task.entry, f"{before}{fence}\n" if fence else before)


_INDENTED = re.compile(r"\s*?^(?:\t| {2,})\S", re.MULTILINE)


def _before_closing_fence(answer: str) -> str:
    """An answer that begins as the indented continuation of code is over at a fence, which closes what the prompt began.

    One blank is not an indentation: many tokenizers put a blank before the first word of an answer.
    """
    before, fence, _ = answer.partition("```")
    return before if fence and _INDENTED.match(before) else answer


def _blocks(answer: str, task: Task) -> list[Block]:
    """The fenced blocks that are tagged with the task's language or with none."""
    language = language_named(task.language)
    blocks = []
    for match in _FENCE.finditer(answer):
        tag = match.group(1).lower()
        tagged = tag in (language.name, *language.tags)
        closed = match.group(3).startswith("\n") or (match.group(3) != "" and match.end() < len(answer))
        if tagged or not tag:
            blocks.append(Block(match.group(2) + "\n", tagged, closed))
    return blocks


def fenced_block(answer: str, task: Task) -> str | None:
    """The code of the fenced block to use: the first that defines the function, else the first tagged with the language,
    else the first. None where there is no block."""
    grammar, blocks = language_named(task.language).grammar, _blocks(answer, task)
    defining = [block for block in blocks if grammar.defines(task.entry, block.code)]
    tagged = [block for block in blocks if block.tagged]
    return next((block.code for block in (*defining, *tagged, *blocks)), None)


def code_part(text: str, task: Task) -> str:
    """The code of an answer that has words around it but no fence: to where the function and its own helpers end."""
    language = language_named(task.language)
    found = next(iter(language.grammar.found(task.entry, text)), None)
    begins = language.grammar.code_start.search(text) if language.grammar.code_start else None
    starts = [match.start() for match in (found, begins) if match]
    code = text[min(starts) :] if starts else text
    end = language.grammar.end_of(task.entry, code).index
    if end is not None:
        code = code[:end].rstrip("\n") + "\n"
    return language.assembly.code_only(task.entry, code)


def continuation(task: Task, text: str) -> str:
    """The part of the text that continues the prompt: to where the function ends, and the helpers of its own behind it."""
    text = language_named(task.language).assembly.restored(text)
    end = _function_end(task, text).index
    if end is None and task.closing:  # another harness took the closing off, or the answer was cut short
        return text.rstrip("\n") + "\n" + task.closing
    return text if end is None else text[:end].rstrip("\n") + "\n"


def certain_end(suite: Suite, task: Task, text: str, *, chat: bool) -> bool:
    """Whether nothing that could still be generated would change what `extract` takes: generation may stop."""
    if _before_closing_fence(text) != text:
        return True
    grammar = language_named(task.language).grammar
    if _function_before_fence(grammar, task, text) is not None:
        return _end_before_fence(grammar, task, text).certain
    if "```" in text:
        return any(block.closed and grammar.defines(task.entry, block.code) for block in _blocks(text, task))
    if chat or suite.layout == "mbpp":
        return False
    return _function_end(task, text).certain


def _function_end(task: Task, text: str) -> End:
    """Where the function ends that the text continues, helpers included that it uses; and whether that is certain."""
    grammar = language_named(task.language).grammar
    end = grammar.blocks.continuation_end(task.prompt, text, closed_by_tests=bool(task.closing))
    return OPEN if end is None else grammar.end_with_helpers(text, end)
