"""An engine with the name and the bounds that it is served under: turns requests into token ids, or refuses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtk.engines.sessions.row_batch import RowBatch
from qtk.engines.sessions.session import DecoderSession, EngineSession
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer
from qtk.serving.options import ServeOptions
from qtk.serving.refusals import RefusedRequest
from qtk.serving.requests import ChatRequest
from qtk.serving.runners import CallRunner, RowsRunner, Runner


@dataclass(frozen=True)
class ServedEngine:
    """A session that is served, and how. api_key: what clients must send; empty for none."""

    session: EngineSession
    options: ServeOptions
    api_key: str = ""

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.options.model_name or self.session.directory.resolve().name

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.session.tokenizer

    @property
    def most_positions(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.session.limits.max_positions

    def runner(self) -> Runner:
        """What carries works out. InputError for more rows than the engine holds."""
        rows, most = self.options.rows, self.session.limits.max_batch
        if rows is not None and rows > most:
            raise InputError(f"--rows {rows}: the engine takes {most} at once (--max-batch-size of build-engine).")
        if isinstance(self.session, DecoderSession):
            return RowsRunner(self.session, RowBatch(self.session, rows))
        return CallRunner(self.session)

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of a text to be continued, as `qtk generate` makes them."""
        return self.tokenizer.encode(text, special=True)

    def chat_prompt(self, request: ChatRequest) -> list[int]:
        """Token ids of a conversation, as `qtk generate --chat-format` makes them."""
        messages = [message.plain() for message in request.messages]
        try:
            return self.tokenizer.encode(self.tokenizer.render(messages, self.options.chat_format))
        except InputError as error:
            raise RefusedRequest(400, str(error), param="messages") from None

    def new_tokens(self, prompt: Sequence[int], wanted: int | None, param: str) -> int:
        """How many new tokens a prompt may have: as many as wanted, or as fit. RefusedRequest for a prompt that is empty,
        holds unknown tokens or is too long."""
        vocab, most = self.session.vocab_size, self.most_positions
        if not prompt:
            raise RefusedRequest(400, "The prompt has no tokens.", param=param)
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise RefusedRequest(400, f"The prompt holds a token outside 0..{vocab - 1}.", param=param)
        room = most - len(prompt)
        least = 1 if wanted is None else wanted
        too_long = self.session.prompt_bound and len(prompt) > self.session.limits.max_input_len
        if room < least or too_long:
            bound = f"; a prompt may have {self.session.limits.max_input_len}" if too_long else ""
            raise RefusedRequest(
                400,
                f"This model's maximum context length is {most} tokens, prompt and answer together{bound}. Your prompt has "
                f"{len(prompt)}, and {least} more are asked for. Shorten the prompt or lower max_tokens.",
                param=param,
                code="context_length_exceeded",
            )
        return room if wanted is None else wanted
