"""The source before the tests: a suite's header, the prompt and the answer, put together as the language wants them."""

from __future__ import annotations

from qtk.bench.accuracy.languages.assembly import Frame
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.task import Task


def continued(suite: Suite, task: Task, continuation: str) -> str:
    """The source when the answer continued the prompt."""
    if suite.layout == "mbpp":
        return _after_description(suite, task, continuation)
    return language_named(task.language).assembly.continued(task, continuation, _frame(suite, task))


def whole(suite: Suite, task: Task, code: str) -> str:
    """The source when the code defines the function itself: the prompt's imports and helpers, then the code."""
    if suite.layout == "mbpp":
        return _after_description(suite, task, code)
    return language_named(task.language).assembly.whole(task, code, _frame(suite, task))


def reference_source(suite: Suite, task: Task) -> str:
    """The known solution as a source before the tests."""
    return continued(suite, task, task.reference.rstrip("\n") + "\n" + task.closing if task.closing else task.reference)


def _frame(suite: Suite, task: Task) -> Frame:
    return Frame(suite.header(task.language), complete=suite.layout == "multipl-e")


def _after_description(suite: Suite, task: Task, code: str) -> str:
    """MBPP's prompts are words, so that no part of them belongs into the source."""
    return f"{suite.header(task.language)}{code}\n{task.setup}\n"
