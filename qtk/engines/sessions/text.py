"""Text in, text out: prompts rendered and tokenized, tokens turned into text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qtk.engines.sessions.session import EngineSession
from qtk.models.tokenizer import TextTokenizer


class GenerateOptions(BaseModel):
    """Options of a generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(128, ge=1, description="Most new tokens a prompt.")
    chat: Literal["none", "model", "codefuse"] = Field(
        "none", description="Render the prompt as a user's message: with the model's chat template, or CodeFuse's."
    )
    system: str | None = Field(None, description="A system message in front of it.")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the smallest set of tokens with this probability.")
    seed: int | None = Field(None, description="Seed of the draws.")
    threads: int | None = Field(None, ge=1, description="Threads of the processor. Default: all that may be used.")


class TextRow(BaseModel):
    """One prompt's result."""

    model_config = ConfigDict(frozen=True)
    prompt: str
    text: str
    prompt_tokens: int
    tokens: list[int]
    finish: Literal["stop", "length"]


class TextResult(BaseModel):
    """Every prompt's result, and the seconds until the first token and after it."""

    model_config = ConfigDict(frozen=True)
    rows: list[TextRow]
    prefill_seconds: float
    decode_seconds: float


def generate_text(
    session: EngineSession,
    prompts: Sequence[str],
    options: GenerateOptions,
    *,
    on_text: Callable[[str], None] | None = None,
) -> TextResult:
    """Continues each prompt. on_text is given the first row's text in pieces as it comes.

    InputError when the engine has no tokenizer, no chat template where one is asked for, or cannot hold the prompt.
    """
    tokenizer = session.tokenizer
    rows = [encode_prompt(tokenizer, prompt, options) for prompt in prompts]
    pieces = TextPieces(tokenizer)

    def on_token(row: int, token: int) -> None:
        if on_text is not None and row == 0 and (piece := pieces.add(token)):
            on_text(piece)

    made = session.generate(
        rows,
        options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        on_token=on_token,
    )
    if on_text is not None and (rest := pieces.rest()):
        on_text(rest)
    results = [
        TextRow(
            prompt=prompt,
            text=tokenizer.decode(tokens),
            prompt_tokens=len(row),
            tokens=tokens,
            finish=finish,
        )
        for prompt, row, tokens, finish in zip(prompts, rows, made.tokens, made.finish, strict=True)
    ]
    return TextResult(rows=results, prefill_seconds=made.prefill_seconds, decode_seconds=sum(made.token_seconds))


def encode_prompt(tokenizer: TextTokenizer, prompt: str, options: GenerateOptions) -> list[int]:
    """Token ids of a prompt: rendered as a chat where asked, else with what the tokenizer puts in front of a text."""
    if options.chat == "none":
        return tokenizer.encode(prompt, special=True)
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return tokenizer.encode(tokenizer.render(messages, options.chat))


class TextPieces:
    """Turns tokens into text as they come, holding back what a later token may still change (half a character)."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Text before `_shown` of the tokens from `_start` on is out already.
        self._start = 0
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens[self._start :])
        if text.endswith("\ufffd"):
            return ""
        piece = text[self._shown :]
        self._shown = len(text)
        if text.endswith("\n"):
            # Begin afresh at a line's end, so that each token costs one line's decoding and not the whole text's.
            self._start, self._shown = len(self._tokens), 0
        return piece

    def rest(self) -> str:
        """What is left when no more tokens come."""
        text = self._tokenizer.decode(self._tokens[self._start :])
        piece, self._shown = text[self._shown :], len(text)
        return piece
