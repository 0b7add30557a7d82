"""The bodies of requests, as OpenAI's reference describes them. Fields that are not served are refused, not passed over."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator

from qtk.engines.sessions.decoding import Decoding
from qtk.serving.refusals import RefusedRequest, wrong_fields

_Tokens = list[StrictInt]
_MOST_CHOICES = 16
_MOST_STOPS = 4
Request = TypeVar("Request", bound="GenerationRequest")


class StreamOptions(BaseModel):
    """include_usage: whether the last piece of a stream says how many tokens there were."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both kinds of request have.

    ignore_eos is an extension that vLLM has too: no token of the model ends the text. user: whose request it is, for the
    order in which waiting requests are taken. The last four are taken at the value that changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=_MOST_CHOICES)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: bool = False
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    metadata: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        stops = () if value is None else (value,) if isinstance(value, str) else value
        if isinstance(stops, list | tuple) and (len(stops) > _MOST_STOPS or "" in stops):
            raise ValueError(f"up to {_MOST_STOPS} texts, none of them empty")
        return stops

    @field_validator("temperature", "top_p", "n", "stream", "ignore_eos", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("seed")
    @classmethod
    def _any_whole_number(cls, value: int | None) -> int | None:
        """NumPy's generators take numbers from 0 on; clients may send any of 64 bits."""
        return None if value is None else value % (1 << 64)

    @property
    def decoding(self) -> Decoding:
        """How the tokens are chosen."""
        return Decoding(self.temperature, self.top_p, ignore_eos=self.ignore_eos, seed=self.seed)

    @property
    def usage_in_stream(self) -> bool:
        """Whether the last piece of a stream says how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. prompt: one text or one list of token ids, or several of them. Every prompt gets `n` choices."""

    prompt: str | _Tokens | list[str] | list[_Tokens]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list. RefusedRequest for none, or too many of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts: Any = [self.prompt] if self.prompt and isinstance(self.prompt[0], int) else self.prompt
        if not 1 <= len(prompts) * self.n <= _MOST_CHOICES:
            raise RefusedRequest(
                400,
                f"{len(prompts)} prompts with {self.n} choices each: a request has 1 to {_MOST_CHOICES} choices in all.",
                param="prompt",
            )
        return list(prompts)

    @field_validator("best_of")
    @classmethod
    def _as_many_as_asked(cls, value: int | None, info: Any) -> int | None:
        if value is not None and value != info.data.get("n", 1):
            raise ValueError("is not served, apart from the value of n")
        return value


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ResponseFormat(BaseModel):
    """Text is the only form of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: Any) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @property
    def most_tokens(self) -> int | None:
        """The bound on new tokens under either of its names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_request(kind: type[Request], body: bytes) -> Request:
    """The request in a body. RefusedRequest for what is not JSON, or not such a request."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedRequest(400, f"The body is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise RefusedRequest(400, "The body is not a JSON object.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise wrong_fields(error) from None
