"""Tables that fit the terminal without breaking a number or a word.

A table that is too wide has its text columns wrapped between words. Where that is not enough, its rows become columns, as
many beside each other as fit, down to one block a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_KEPT_WHOLE = 16  # a column of cells as short as this is not wrapped: "114 MB", "up to date"
_BESIDE_CELL = 3  # a space on either side and a border


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Sheet:
    """A table for people: numbers are aligned right, None becomes a dash, a column without any value is left out."""
    kept = [index for index in range(len(columns)) if not rows or any(row[index] is not None for row in rows)]
    return Sheet(
        title,
        tuple(columns[index] for index in kept),
        tuple(tuple(_text(row[index]) for index in kept) for row in rows),
        tuple(_numeric([row[index] for row in rows]) for index in kept),
    )


@dataclass(frozen=True)
class Sheet:
    """The texts of a table. numeric: which columns hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="table.title", overflow="ignore")
        width = options.max_width
        parts = [self] if self._fits(width) or not any(self.columns) else self._turned(width)
        for part in parts:
            widths = part._widths(width)
            # A word that is longer than the terminal is wide is left to the terminal, which breaks it for the eye only.
            yield from console.render(part._table(widths), options.update_width(max(width, _total(widths))))

    def _turned(self, width: int) -> list[Sheet]:
        """The rows as columns, in as few tables as the width allows."""
        parts: list[Sheet] = []
        done = 0
        while done < len(self.rows):
            counts = range(len(self.rows) - done, 0, -1)
            count = next((count for count in counts if self._beside(done, count)._fits(width)), 1)
            parts.append(self._beside(done, count))
            done += count
        return parts

    def _beside(self, first: int, count: int) -> Sheet:
        """The rows first .. first + count - 1 as columns, headed by their first cells."""
        chosen = self.rows[first : first + count]
        names = (self.columns[0], *(row[0] for row in chosen))
        lines = tuple((name, *(row[index] for row in chosen)) for index, name in enumerate(self.columns) if index > 0)
        return Sheet("", names, lines, (False, *[any(self.numeric)] * count))

    def _fits(self, width: int) -> bool:
        """Whether every word fits without being broken."""
        return _total(self._widths(width)) <= width

    def _widths(self, width: int) -> list[int]:
        """The width of each column: its longest line where there is room, never less than its longest word."""
        cells = list(zip(self.columns, *self.rows, strict=True))
        least = [max(cell_len(word) for text in column for word in [*text.split(), ""]) for column in cells]
        widths = [max(cell_len(line) for text in column for line in [*text.splitlines(), ""]) for column in cells]
        for index, numeric in enumerate(self.numeric):
            longest = max((cell_len(row[index]) for row in self.rows), default=0)
            if numeric or longest <= _KEPT_WHOLE:
                least[index] = max(least[index], longest)
        while _total(widths) > width and (wide := [i for i in range(len(widths)) if widths[i] > least[i]]):
            widths[max(wide, key=lambda i: widths[i])] -= 1
        return widths

    def _table(self, widths: Sequence[int]) -> Table:
        result = Table(header_style="bold", show_header=any(self.columns))
        for name, width, numeric in zip(self.columns, widths, self.numeric, strict=True):
            result.add_column(name, justify="right" if numeric else "left", width=width)
        for row in self.rows:
            result.add_row(*row)
        return result


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _BESIDE_CELL * len(widths) + 1


def _numeric(cells: Sequence[object]) -> bool:
    return bool(cells) and all(isinstance(cell, int | float) or cell is None for cell in cells)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:.0f}"
