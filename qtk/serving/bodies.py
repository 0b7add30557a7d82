"""The bodies of answers, whole or in pieces, in the two forms of OpenAI: completions and chat completions."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qtk.models.tokenizer import TextTokenizer
from qtk.serving.choices import ChoicePiece, PlacedLogprob
from qtk.serving.token_logprobs import TokenLogprob

Body = dict[str, Any]
END_OF_STREAM = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class TokenUsage:
    """How many tokens the prompts and the choices of a request had."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> Body:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class AnswerForm(ABC):
    """One answer's identity, and how its bodies are made. logprobs: whether the request asks for log probabilities."""

    model: str
    tokenizer: TextTokenizer
    logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    piece_object: ClassVar[str]

    def whole(self, choices: Sequence[ChoicePiece], usage: TokenUsage) -> Body:
        """The answer in one body."""
        made = [self._choice(choice, self._whole_text(choice.text)) for choice in choices]
        return self._body(self.whole_object, made) | {"usage": usage.body()}

    def piece(self, piece: ChoicePiece) -> Body:
        """A piece of a stream."""
        return self._body(self.piece_object, [self._choice(piece, self._piece_text(piece.text))])

    @abstractmethod
    def opening(self, index: int) -> Body | None:
        """What a stream says of a choice before its first piece."""

    def closing(self, usage: TokenUsage) -> Body:
        """The piece of a stream that says how many tokens there were."""
        return self._body(self.piece_object, []) | {"usage": usage.body()}

    @abstractmethod
    def _whole_text(self, text: str) -> Body: ...

    @abstractmethod
    def _piece_text(self, text: str) -> Body: ...

    @abstractmethod
    def _logprobs(self, found: Sequence[PlacedLogprob]) -> Body: ...

    def _choice(self, piece: ChoicePiece, text: Body) -> Body:
        logprobs = self._logprobs(piece.logprobs) if self.logprobs else None
        return {"index": piece.index, **text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _body(self, kind: str, choices: list[Body]) -> Body:
        return {
            "id": f"{self.prefix}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _text_of(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False)


class CompletionForm(AnswerForm):
    """Answers of /v1/completions."""

    prefix = "cmpl"
    whole_object = piece_object = "text_completion"

    def opening(self, index: int) -> Body | None:
        return None

    def _whole_text(self, text: str) -> Body:
        return {"text": text}

    _piece_text = _whole_text

    def _logprobs(self, found: Sequence[PlacedLogprob]) -> Body:
        tops = [
            None if item.logprob is None else {self._text_of(token): value for token, value in item.logprob.top}
            for item in found
        ]
        return {
            "tokens": [self._text_of(item.token) for item in found],
            "token_logprobs": [None if item.logprob is None else item.logprob.value for item in found],
            "top_logprobs": tops,
            "text_offset": [item.offset for item in found],
        }


class ChatForm(AnswerForm):
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    piece_object = "chat.completion.chunk"

    def opening(self, index: int) -> Body | None:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._body(self.piece_object, [choice])

    def _whole_text(self, text: str) -> Body:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece_text(self, text: str) -> Body:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, found: Sequence[PlacedLogprob]) -> Body:
        return {
            "content": [self._of_token(item.logprob) for item in found if item.logprob is not None],
            "refusal": None,
        }

    def _of_token(self, logprob: TokenLogprob) -> Body:
        tops = [self._one(token, value) for token, value in logprob.top]
        return self._one(logprob.token, logprob.value) | {"top_logprobs": tops}

    def _one(self, token: int, value: float) -> Body:
        text = self._text_of(token)
        # A token may be a part of a character, whose bytes the tokenizer does not tell.
        whole = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": value, "bytes": whole}


def server_sent(body: Body) -> bytes:
    """A body as one server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
