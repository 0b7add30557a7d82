"""The real reference solutions, given in every shape that an answer has, run in the sandbox: all must pass."""

from __future__ import annotations

import re

import pytest

from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.extraction import certain_end, extract
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import load_suite, suite_tasks
from qtk.bench.accuracy.task import Task
from qtk.sandbox.pool import choose_level

SUITE, MBPP = load_suite("humaneval-x"), load_suite("mbpp")
HELPERS = (10, 32, 38, 50)  # whose prompts begin with a function that is there already


def function_alone(task: Task) -> str:
    """The function that was asked for without the rest of the prompt; in Java as a method without its class."""
    [*_, last] = language_named(task.language).grammar.found(task.entry, task.prompt)
    text = task.prompt[last.start() :] + task.reference
    if task.language == "cpp":
        return re.split(r"\n#undef NDEBUG|\n#include\s*<assert", text)[0]
    return text.rstrip().removesuffix("}") if task.language == "java" else text


def shapes(task: Task) -> list[str]:
    """The function fenced, the whole program fenced, the same without fences, and the plain continuation."""
    whole = task.prompt + task.reference
    return [
        f"Here:\n```{task.language}\n{function_alone(task)}\n```\nThat is it.",
        f"```\n{whole}\n```",
        f"{whole}\n",
        f"{task.reference}\n",
    ]


def missed(language: str, tasks: list[Task]) -> dict[str, str]:
    """What did not pass: task and shape -> verdict and complaint."""
    answers = [
        Answer(SUITE.name, language, task.task_id, number, text)
        for task in tasks
        for number, text in enumerate(shapes(task))
    ]
    try:
        scorer = Scorer(SUITE, language, level=choose_level(), rules="qtk", workers=2)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    with scorer:
        return {
            f"{scored.answer.task_id}, shape {scored.answer.sample}": f"{scored.verdict}: {scored.stderr[-300:]}"
            for scored in scorer.score(tasks, answers)
            if scored.verdict != "passed"
        }


# The compiled languages take seconds each; what is special to them has fast tests of its own.
@pytest.mark.parametrize(
    "language",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("java", "cpp", "go") else name for name in SUITE.languages],
)
def test_references_pass_in_every_shape(shared_data, language):
    tasks = suite_tasks(SUITE, language, shared_data)[0]
    compiled = language not in ("python", "javascript")
    assert missed(language, [tasks[number] for number in sorted(HELPERS)[:2]] if compiled else tasks[::8]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("language", SUITE.languages)
def test_all_references_pass_in_every_shape(shared_data, language):
    by_chance = "Go/95"  # its solution passes or not with the order in which Go walks a map (docs/benchmarks.md)
    tasks = [task for task in suite_tasks(SUITE, language, shared_data)[0] if task.task_id != by_chance]
    assert missed(language, tasks) == {}


@pytest.mark.parametrize("language", SUITE.languages)
def test_every_task_asks_for_the_function_that_its_prompt_leaves_open(shared_data, language):
    for task in suite_tasks(SUITE, language, shared_data)[0]:
        grammar = language_named(language).grammar
        assert len(grammar.found(task.entry, task.prompt)) == 1, task.task_id
        assert task.entry in task.tests, task.task_id
        fenced = extract(SUITE, task, shapes(task)[0])
        assert fenced.how == "fenced"
        if language in ("cpp", "go", "javascript", "java"):
            depth = 1 if language == "java" else 0
            names = [defined.name for defined in grammar.definitions(fenced.source, depth)]
            assert names.count(task.entry) == 1
            assert len(names) == len(set(names)), task.task_id


def test_mbpp_asks_for_the_function_that_its_assertions_call(shared_data):
    tasks = suite_tasks(MBPP, "python", shared_data)[0]
    for task in tasks:
        assert re.search(rf"^def\s+{task.entry}\s*\(", task.reference, re.MULTILINE), task.task_id
        assert re.search(rf"\b{task.entry}\(", task.tests), task.task_id
    entries = {task.task_id: task.entry for task in tasks}
    assert entries["Python/18"] == "remove_dirty_chars"  # its solution begins with helpers


def test_mbpp_references_pass_whatever_the_model_writes_behind_them(shared_data):
    tasks = suite_tasks(MBPP, "python", shared_data)[0][::10]
    behind = (
        "\nassert 1 == 2\n",
        '\n"""\nWrite more.\n"""\nraise SystemExit\n',
        "\nprint(1 / 0)\n",
        "\nif True:\n    1 / 0\n",
    )
    answers = [
        Answer(
            "mbpp", "python", task.task_id, 0, task.reference.replace("\r", "").rstrip() + "\n" + behind[n % 4] + "x\n"
        )
        for n, task in enumerate(tasks)
    ]
    with Scorer(MBPP, "python", level=choose_level(), rules="qtk", workers=2) as scorer:
        failed = [scored.answer.task_id for scored in scorer.score(tasks, answers) if scored.verdict != "passed"]
    assert failed == []
    for task, answer in zip(tasks, answers, strict=True):
        assert certain_end(MBPP, task, answer.generation, chat=False), task.task_id
        assert not certain_end(MBPP, task, task.reference.replace("\r", ""), chat=False), task.task_id
