"""A programming task: one problem in one language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One problem in one language.

    prompt: what the model continues. reference: the known solution, as a continuation of the prompt (for MBPP a whole
    program; empty where the data has none). tests: what is appended after the solution. entry: the name of the function
    that the tests call. setup: what must stand before the tests (MBPP's objects, Go's package clause and imports).
    imports: the part of the prompt that imports. stop: the data's own stop strings. closing: the end of the function,
    where the data counts that end among the tests because a stop string cuts it off the answer. example_tests: the
    assertions that an MBPP prompt shows. header: what the suite puts before every program of the language.
    """

    task_id: str
    language: str
    prompt: str
    reference: str
    tests: str
    entry: str
    setup: str = ""
    imports: str = ""
    stop: tuple[str, ...] = ()
    closing: str = ""
    example_tests: tuple[str, ...] = ()
    header: str = ""
