"""The answer rules of two published harnesses, kept as they are, oddities included, for comparing with published numbers.

codefuse: codefuse-evaluation (its processors and `process_humaneval_test`), as of April 2025.
bigcode: bigcode-evaluation-harness, tasks humaneval, mbpp and multiple-LANG, as of July 2025.
"""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.registry import LANGUAGES, language_named
from qtk.bench.accuracy.options import Rules, harness_of
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError

BIGCODE_STOP = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"),
    "mbpp": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    "multipl-e": ("<file_sep>",),  # and the data's own
}


# Seconds of a program's run, of its tests alone. codefuse-evaluation gives every sample the same; bigcode's are those of
# its HumanEval, MBPP and MultiPL-E, where some languages have a clock of their own.
_CODEFUSE_SECONDS = 120.0
_BIGCODE_SECONDS = {"humaneval": 3.0, "mbpp": 3.0, "multipl-e": 15.0}


def as_the_harness(suite: Suite, rules: Rules) -> Suite:
    """The suite with the harness's own clocks and, in codefuse's MBPP, its challenge tests. InputError: no such rules."""
    if rules == "qtk" or suite.kind != "programs":
        return suite
    require_rules(suite, rules)
    if harness_of(rules) == "codefuse":
        challenge = suite.challenge_tests or suite.layout == "mbpp"
        return suite.model_copy(update={"seconds": _CODEFUSE_SECONDS, "challenge_tests": challenge})
    languages = dict(suite.languages)
    if suite.layout == "multipl-e":
        for name, part in suite.languages.items():
            seconds = LANGUAGES[name].bigcode_seconds if name in LANGUAGES else None
            if seconds is not None:
                languages[name] = part.model_copy(update={"settings": {**part.settings, "seconds": seconds}})
    return suite.model_copy(update={"seconds": _BIGCODE_SECONDS[suite.layout], "languages": languages})


def codefuse_source(suite: Suite, task: Task, answer: str, rules: Rules) -> str:
    """The source before the tests, as codefuse-evaluation makes it.

    Answers that are stored are put together as they are: in that harness they have been through a processor when they
    were generated. The other rules name the processor that a model's answers go through first.
    """
    if rules != "codefuse:stored":
        answer = processed(suite, task, answer, rules)
    known = language_named(task.language).codefuse
    if suite.layout == "mbpp":  # its branch for code from words
        block = re.search(r"```(.*?)```", answer, re.DOTALL)
        code = block.group(1).replace(known.fence, " ") if block else answer
        return f"{known.header}{code}\n{task.setup}\n"
    return known.source(task, answer)


def processed(suite: Suite, task: Task, answer: str, rules: Rules) -> str:
    """What the processor of a model keeps of an answer.

    codefuse:13b is `Codefuse13BProcessor`, which does not cut. codefuse:llama34b is `CodeFuseCodeLlama34BProcessor`,
    which cuts a continuation (`_process_generation`): in Python at the first line that is not indented, so that nothing
    is left of an answer that writes the whole function again.
    """
    known = language_named(task.language).codefuse
    if suite.layout == "mbpp":
        return _marked_code(known.fence, answer)
    if rules == "codefuse:13b":
        _, marker, response = answer.partition("### Response:")
        return _marked_code(known.fence, (response if marker else answer).replace("\t", "    "))
    return known.cut(_marked_code(known.fence, answer))


def _marked_code(fence: str, text: str) -> str:
    """`_post_process_mkcode`: the first fenced block; of what mentions an import, the part behind its docstring."""
    block = re.search(rf"```{re.escape(fence)}(.*?)```", text, re.DOTALL | re.IGNORECASE)
    if block:
        text = block.group(1)
    if "import" in text and "  import" not in text:
        text = _behind_docstring(text)
    return text.replace("<|endoftext|>", "")


def _behind_docstring(text: str) -> str:
    for quote in ('"""', "'''"):
        if quote in text:
            return text[text.find(quote, text.find(quote) + 3) + 3 :]
    return "\n".join(line for line in text.rstrip().split("\n") if not line.startswith(("def", "from", "import")))


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
    if harness_of(rules) == "codefuse" and suite.layout == "multipl-e":
        raise InputError(f"--compat codefuse has no rules for suite {suite.name}; --compat bigcode has.")


def processor_refusals(rules: Rules) -> list[str]:
    """Why a model's answers cannot be scored by these rules: they say that the answers are stored."""
    if rules != "codefuse:stored":
        return []
    return [
        "--compat codefuse is for answers that are stored (--generations). In codefuse-evaluation the answers of a model "
        "go through the processor of that model first. Name the processor: --compat codefuse:13b, which does not cut "
        "answers, or --compat codefuse:llama34b, which cuts a Python answer at its first line that is not indented."
    ]


def bigcode_stops(suite: Suite, task: Task) -> tuple[str, ...]:
    """The harness's stop strings, with those of the data."""
    return (*BIGCODE_STOP[suite.layout], *task.stop)
