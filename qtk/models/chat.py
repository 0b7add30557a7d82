"""Turns a conversation into the text that a model was trained on: its own chat template, or CodeFuse's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qtk.errors import InputError

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
    """The Jinja chat template that lies beside a model (chat_template.jinja, or in tokenizer_config.json)."""

    def __init__(self, directory: Path, special_tokens: Mapping[str, str]) -> None:
        """Compiles the template in Jinja's immutable sandbox. InputError when the directory has none."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        self._template = environment.from_string(_template_text(directory))
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The conversation as text. InputError when the template refuses it (wrong order of roles, say)."""
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=generation_prompt, **self._special_tokens
            )
        except TemplateError as error:
            raise InputError(f"The chat template refuses a conversation: {error}") from None


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _template_text(directory: Path) -> str:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config_path = directory / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if not template:
        raise InputError(f"{directory} has no chat template. Use --chat-format codefuse, or plain text.")
    return str(template)
