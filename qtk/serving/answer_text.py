"""The text of one choice as its tokens come, which ends where one of the request's stop texts begins."""

from __future__ import annotations

from collections.abc import Sequence

from qtk.engines.sessions.text import TextPieces
from qtk.models.tokenizer import TextTokenizer


class AnswerText:
    """Turns tokens into text that will not be taken back: what may be the beginning of a stop text, or is half a character,
    is held back until it is clear. A stop text may come in any number of tokens, and in the middle of one."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str]) -> None:
        self._pieces = TextPieces(tokenizer)
        self._stops = stops
        self._held = ""
        self.length = 0  # characters that were given out
        self.stopped = False

    @property
    def seen(self) -> int:
        """Characters so far, those held back included."""
        return self.length + len(self._held)

    def add(self, token: int) -> str:
        """The text that this token makes certain. Empty once a stop text has come (`stopped`)."""
        return "" if self.stopped else self._give(self._pieces.add(token), last=False)

    def rest(self) -> str:
        """What is left when no more tokens come."""
        return "" if self.stopped else self._give(self._pieces.rest(), last=True)

    def _give(self, piece: str, *, last: bool) -> str:
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.stopped = bool(found)
        if found:
            text, self._held = text[: min(found)], ""
        else:
            held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        self.length += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop text begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
