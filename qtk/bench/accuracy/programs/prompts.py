"""How a task becomes a prompt: plain completion, the model's chat template, or CodeFuse's format, byte for byte."""

from __future__ import annotations

from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.options import ChatFormat
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.task import Task
from qtk.models.chat import codefuse_chat
from qtk.models.tokenizer import TextTokenizer


def prompt_text(suite: Suite, task: Task, chat_format: ChatFormat) -> str:
    """The text to continue (none), or the user's message (model, codefuse)."""
    language = language_named(task.language)
    tests = "Your code should satisfy these tests:\n" + "\n".join(task.example_tests)
    if chat_format == "codefuse":
        if suite.layout == "mbpp":
            return task.prompt + tests  # no line break between the two: as codefuse-evaluation's nl2code has it
        return f"{language.comment} language: {language.title}\n{task.prompt}"
    if chat_format == "model":
        if suite.layout == "mbpp":
            return f"{task.prompt}\n{tests}\nAnswer with one block of {language.title} code."
        request = f"Complete this {language.title} code. Answer with one code block that holds it whole."
        return f"{request}\n\n```{task.language}\n{task.prompt}```"
    if suite.layout == "mbpp":  # a docstring with the first assertion: the form that bigcode-evaluation-harness uses
        return f'"""\n{task.prompt}\n{task.example_tests[0]}\n"""\n'
    # Without the line break at the end, so that the model may write the token that joins a line break with the
    # indentation behind it.
    return task.prompt.strip()


def encode(tokenizer: TextTokenizer, text: str, chat_format: ChatFormat) -> list[int]:
    """Token ids of the prompt. A rendered chat carries its special tokens as text, so that none are added.

    Nothing is ever cut off: a prompt that an engine cannot hold is an error.
    """
    if chat_format == "none":
        return tokenizer.encode(text, special=True)
    messages = [{"role": "user", "content": text}]
    if chat_format == "codefuse":
        return tokenizer.encode(codefuse_chat(messages, "", generation_prompt=True))
    return tokenizer.encode(tokenizer.render(messages, "model"))
