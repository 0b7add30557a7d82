"""Turns a conversation into the text that a model was trained on: its own chat template, or CodeFuse's format."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qtk.checkpoint.json_file import read_json
from qtk.errors import InputError

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.sandbox import SandboxedEnvironment

Message = Mapping[str, str]
_CODEFUSE_ROLES = {"system": "system", "human": "human", "user": "human", "bot": "bot", "assistant": "bot"}


def codefuse_chat(messages: Sequence[Message], eos: str, *, generation_prompt: bool) -> str:
    """CodeFuse's training format (MFTCoder): "<s>human\\n{text}\\n<s>bot\\n{answer}\\n{eos}\\n", system text in front.

    `<s>` is plain text here, so the result is tokenized without special tokens. A newline is added to a text only
    where it has none, as in training. InputError for a role that the format does not have.
    """
    parts = []
    for message in messages:
        role = _CODEFUSE_ROLES.get(message["role"])
        if role is None:
            raise InputError(f"Role {message['role']!r} is none of CodeFuse's: {', '.join(_CODEFUSE_ROLES)}.")
        text = message["content"] if message["content"].endswith("\n") else message["content"] + "\n"
        parts.append(f"<s>{role}\n{text}" + (f"{eos}\n" if role == "bot" else ""))
    return "".join(parts) + ("<s>bot\n" if generation_prompt else "")


class ChatTemplate:
    """The Jinja chat template that lies beside a model (chat_template.jinja, chat_template.json or tokenizer_config.json)."""

    def __init__(self, directory: Path, special_tokens: Mapping[str, str]) -> None:
        """Compiles the template in Jinja's immutable sandbox. InputError when there is none, or it cannot be compiled."""
        from jinja2 import TemplateError, TemplateSyntaxError

        self._special_tokens = dict(special_tokens)
        self._where, text = _template_text(directory)
        try:
            self._template = _environment().from_string(text)
        except (TemplateError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise InputError(f"{self._where}: the chat template{line} is not Jinja that can be read: {error}") from None

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The conversation as text. InputError when the template refuses it (wrong order of roles, say)."""
        from jinja2 import TemplateError

        try:
            # Tools and documents are there, and none: templates ask for them with `is not none` as with `if`.
            return self._template.render(
                messages=[dict(m) for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._special_tokens,
            )
        except TemplateError as error:
            raise InputError(f"The chat template refuses a conversation: {error}") from None
        except Exception as error:  # a template is a program, and may fail in any way that Python can
            raise InputError(
                f"{self._where}: the chat template fails on a conversation ({type(error).__name__}: {error})."
            ) from None


@functools.cache
def _environment() -> SandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """{% generation %} marks what the assistant says, for training; the text is what it would be without."""

        tags = {"generation"}  # noqa: RUF012 - how Jinja asks for it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _template_text(directory: Path) -> tuple[Path, str]:
    """(file, template): the file that comes first is read, as transformers does."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file, file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text: {error}.") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(directory / name).get("chat_template")
        if isinstance(template, list):  # several named templates
            named = (t for t in template if isinstance(t, Mapping) and t.get("name") == "default")
            template = next((t.get("template") for t in named), None)
        if template and not isinstance(template, str):
            raise InputError(f"{directory / name}: its chat_template is not a text.")
        if template:
            return directory / name, template
    raise InputError(f"{directory} has no chat template. Use --chat-format codefuse, or plain text.")
