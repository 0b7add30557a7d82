"""Text in, text out: prompts rendered and tokenized, tokens turned into text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.session import EngineSession
from qtk.models.tokenizer import TextTokenizer


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

    InputError when the engine has no tokenizer, has no chat template where one is named, or cannot hold the prompt.
    """
    tokenizer = session.tokenizer
    rows = [encode_prompt(tokenizer, prompt, options) for prompt in prompts]
    pieces = TextPieces(tokenizer)

    def on_token(row: int, token: int) -> None:
        if on_text is not None and row == 0 and (piece := pieces.add(token)):
            on_text(piece)

    generation = session.generate(rows, options.max_new_tokens, options.decoding(), on_token)
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
        for prompt, row, tokens, finish in zip(prompts, rows, generation.tokens, generation.finish, strict=True)
    ]
    return TextResult(
        rows=results,
        prefill_seconds=generation.prefill_seconds,
        decode_seconds=sum(generation.token_seconds),
    )


def encode_prompt(tokenizer: TextTokenizer, prompt: str, options: GenerateOptions) -> list[int]:
    """Token ids of a prompt: rendered as a chat where a format is named, else with the tokens that the tokenizer puts in
    front of a text."""
    if options.chat_format == "none":
        return tokenizer.encode(prompt, special=True)
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return tokenizer.encode(tokenizer.render(messages, options.chat_format))


class TextPieces:
    """Turns tokens into text as they come, and holds back what a later token may still change (half a character).

    A token's text depends on the token before it: SentencePiece's decoders drop the space of the first word. So a token is
    decoded together with the tokens of the last piece, whose text is then cut off. `tokenizers.decoders.DecodeStream` does
    the same, but raises where a byte makes an earlier one invalid, which random and sampled tokens do.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # The tokens of the last piece, followed by those that have not come out yet, and the text of the former.
        self._window: list[int] = []
        self._shown = 0
        self._shown_text = ""

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(self._shown_text) or text.endswith("\ufffd"):
            return ""
        piece = text[len(self._shown_text) :]
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        self._shown_text = self._tokenizer.decode(self._window)
        return piece

    def rest(self) -> str:
        """The text that is left when no more tokens come."""
        return self._tokenizer.decode(self._window)[len(self._shown_text) :]
