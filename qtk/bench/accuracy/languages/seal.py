"""Words by which a program that runs in one process with its tests shows how they ended.

Such a program could find whatever word shows a pass: in its own file or its memory. So there are many, and only one of them
counts. Which one, the program's text says in the order of its steps only, not beside the words. The others are decoys: one
of them shows that a wrong assertion held, and the rest stand for nothing; whoever prints any of them has pretended.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

_WORDS = 32


@dataclass(frozen=True)
class Seal:
    """The words of one program. good: the number of the one that shows a pass. bad: of the one that shows that a wrong
    assertion held."""

    words: tuple[str, ...]
    good: int
    bad: int

    @staticmethod
    def drawn() -> Seal:
        """Words that no program can know beforehand."""
        words = tuple(f"ended-{secrets.token_hex(10)}" for _ in range(_WORDS))
        good = secrets.randbelow(_WORDS)
        return Seal(words, good, (good + 1 + secrets.randbelow(_WORDS - 1)) % _WORDS)

    @property
    def sentinel(self) -> str:
        return self.words[self.good]

    @property
    def decoys(self) -> tuple[str, ...]:
        return tuple(word for number, word in enumerate(self.words) if number != self.good)

    def listed(self, separator: str = ", ", quote: str = '"') -> str:
        """The words as the items of a list in a program."""
        return separator.join(f"{quote}{word}{quote}" for word in self.words)
