"""How a call chooses its tokens and when a row ends: what the command line, accuracy runs and lm-eval hand to `generate`."""

from __future__ import annotations

from dataclasses import dataclass

from qtk.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """The decoding of one call. InputError for a temperature or top_p that makes no distribution.

    temperature: 0 takes the most likely token. top_p: draw from the smallest set of most likely tokens that together have
    this probability. stop: token ids that end a row; None means those of the model's generation_config. ignore_eos: no
    token ends a row. seed: one number for all rows, or one number for each; None draws differently in each call.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    stop: frozenset[int] | None = None
    ignore_eos: bool = False
    seed: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"temperature {self.temperature} and top_p {self.top_p}: the temperature must be at least 0, and top_p "
                "above 0 and at most 1."
            )

    def row_seeds(self, rows: int) -> list[int] | list[None]:
        """A seed for each row, for runtimes that draw by themselves: the given ones, or numbers that follow the given one."""
        if self.seed is None:
            return [None] * rows
        return [self.seed + row for row in range(rows)] if isinstance(self.seed, int) else list(self.seed)


GREEDY = Decoding()
