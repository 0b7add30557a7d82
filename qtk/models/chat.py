"""Turns a conversation into the text that a model was trained on: its own chat template, or CodeFuse's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qtk.bounded.files import read_bounded_text
from qtk.bounded.programs import ProgramFailed, TooMuch, check_template, render_template
from qtk.checkpoint.json_file import read_json
from qtk.errors import InputError

_TEMPLATE_LIMIT = 1_000_000  # bytes; the longest in use have about 20,000
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
        """Compiles the template, which runs in a process with limits (`qtk.bounded.programs`). InputError when there is none, or it
        cannot be compiled."""
        self._special_tokens = dict(special_tokens)
        self._where, self._template = _template_text(directory)
        try:
            check_template(self._template)
        except TooMuch as error:
            raise InputError(f"{self._where}: the chat template cannot be used: {error}.") from None
        except ProgramFailed as error:
            line = "" if error.line is None else f", line {error.line}"
            raise InputError(f"{self._where}: the chat template{line} is not Jinja that can be read: {error}") from None

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The conversation as text. InputError when the template refuses it (wrong order of roles, say), fails, or takes too much
        time or memory."""
        try:
            # Tools and documents are there, and none: templates ask for them with `is not none` as with `if`.
            values = {
                "messages": [dict(m) for m in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": generation_prompt,
                **self._special_tokens,
            }
            return render_template(self._template, values)
        except TooMuch as error:
            raise InputError(f"{self._where}: the chat template cannot be used on a conversation: {error}.") from None
        except ProgramFailed as error:
            if error.refused:
                raise InputError(f"The chat template refuses a conversation: {error}") from None
            raise InputError(
                f"{self._where}: the chat template fails on a conversation ({error.kind}: {error})."
            ) from None


def _template_text(directory: Path) -> tuple[Path, str]:
    """(file, template): the file that comes first is read, as transformers does."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file, read_bounded_text(file, _TEMPLATE_LIMIT)
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
