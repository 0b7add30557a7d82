"""Where a function ends in the text of a program: by braces, by indentation, or by a last line in column 0."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Blocks(ABC):
    """How the text of a language shows where a function ends. Indices count characters of the text that is given."""

    def searched(self, code: str) -> str:
        """The text in which definitions are looked for; as long as `code`, character for character."""
        return code

    @abstractmethod
    def continuation_end(self, prompt: str, text: str, *, closed_by_tests: bool) -> int | None:
        """Where the function ends that the prompt opens and the text continues; None while that function may go on.

        closed_by_tests: the tests bring the brace that closes the function.
        """

    @abstractmethod
    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        """Where the function ends whose definition is the match; None while that function may go on."""

    @abstractmethod
    def helper_end(self, text: str, start: int) -> int | None:
        """Where the definition ends that begins with the line at `start`; None while that definition may go on."""


@dataclass(frozen=True)
class Braces(Blocks):
    """Blocks stand in braces.

    strings_and_comments: matches what may hold braces that open and close nothing. search_blanked: definitions are
    looked for outside strings and comments. That is right only where no apostrophe in the words of an answer can begin
    a string that reaches over several lines.
    """

    strings_and_comments: re.Pattern[str]
    search_blanked: bool = False

    def blanked(self, source: str) -> str:
        """The source with strings and comments blanked out, and every other character where it was."""
        return self.strings_and_comments.sub(lambda found: re.sub(r"[^\n]", " ", found.group(0)), source)

    def block_end(self, source: str, depth: int) -> int | None:
        """Index just behind the brace that closes `depth` open blocks; None while a block is still open."""
        for index, character in enumerate(self.blanked(source)):
            if character == "{":
                depth += 1
            elif character == "}":
                depth -= 1
                if depth == 0:
                    return index + 1
        return None

    def without_block(self, source: str, header: re.Pattern[str]) -> str:
        """The source without the first block (class, function) whose header matches."""
        found = header.search(self.blanked(source))
        if found is None:
            return source
        opening = source.find("{", found.start())
        end = self.block_end(source[opening:], 0) if opening >= 0 else None
        return source[: found.start()] + (source[opening + end :] if end is not None else "")

    def opening(self, plain: str, definition: re.Match[str]) -> int | None:
        """Where the body of a definition begins in a blanked source: at its brace."""
        position = definition.end()
        if plain[position - 1] == "{":
            return position - 1
        if plain[position - 1] == "(":
            position = behind_parenthesis(plain, position) or len(plain)
        opening = plain.find("{", position)
        return opening if opening >= 0 else None

    def searched(self, code: str) -> str:
        return self.blanked(code) if self.search_blanked else code

    def continuation_end(self, prompt: str, text: str, *, closed_by_tests: bool) -> int | None:
        plain = self.blanked(prompt)
        # What the tests close is never more than one block.
        return self.block_end(text, 1 if closed_by_tests else plain.count("{") - plain.count("}"))

    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        opening = self.opening(self.blanked(code), definition)
        end = None if opening is None else self.block_end(code[opening:], 0)
        return None if opening is None or end is None else opening + end

    def helper_end(self, text: str, start: int) -> int | None:
        end = self.block_end(text[start:], 0)
        return None if end is None else start + end


def behind_parenthesis(plain: str, position: int) -> int | None:
    """Behind the parenthesis that closes the one that is open at `position`."""
    depth = 1
    for index in range(position, len(plain)):
        depth += (plain[index] == "(") - (plain[index] == ")")
        if depth == 0:
            return index + 1
    return None


@dataclass(frozen=True)
class LastLine(Blocks):
    """A function ends with a line in column 0: where words or parentheses make blocks, or braces mean too much else.

    pattern: matches that line. Where a function's last line cannot be told from the others (Racket), an empty match
    before the next thing in column 0.
    """

    pattern: re.Pattern[str]

    def continuation_end(self, prompt: str, text: str, *, closed_by_tests: bool) -> int | None:
        begun = len(text) - len(text.lstrip())
        last = self.pattern.search(text, begun + 1)
        return last.end() if last else None

    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        return self._end_behind(code, definition.end())

    def helper_end(self, text: str, start: int) -> int | None:
        return self._end_behind(text, text.index("\n", start) + 1)

    def _end_behind(self, text: str, start: int) -> int | None:
        end = self.continuation_end("", text[start:], closed_by_tests=False)
        return None if end is None else start + end


_SIGN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*|[()\[\]{}:]')


class Indentation(Blocks):
    """Blocks are indented, strings and comments are Python's."""

    def continuation_end(self, prompt: str, text: str, *, closed_by_tests: bool) -> int | None:
        return indented_end(text)

    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        return self.helper_end(code, definition.start())

    def helper_end(self, text: str, start: int) -> int | None:
        depth = 0
        for found in _SIGN.finditer(text, start):
            sign = found.group(0)
            depth += (sign in "([{") - (sign in ")]}")
            if sign != ":" or depth:
                continue
            line_end = text.find("\n", found.end())
            if line_end < 0:
                return None
            if text[found.end() : line_end].split("#")[0].strip():  # its body is on the same line
                return line_end + 1
            after = indented_end(text[line_end + 1 :])
            return None if after is None else line_end + 1 + after
        return None


def indented_end(text: str) -> int | None:
    """Index where an indented block certainly ends: the first later line that starts in column 0.

    A comment in column 0 does not end the block, nor does the inside of a triple-quoted string. None while the block
    may go on, or when the text does not begin with an indented line (comments in column 0 before it set aside).
    """
    quote, begun, position = "", False, 0
    for line in text.split("\n"):
        stripped = line.strip()
        if not quote and stripped:
            if not line[0].isspace():
                if not stripped.startswith("#"):
                    return position if begun else None
            else:
                begun = True
        quote = _open_quote(line, quote)
        position += len(line) + 1
    return None


_TRIPLE = ('"""', "'''")
_QUOTED = re.compile(r"\"\"\"|'''|#|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")


def _open_quote(line: str, quote: str) -> str:
    """The triple quote that is open after the line. A triple quote inside a string of single quotes opens nothing."""
    position = 0
    while True:
        if quote:
            end = line.find(quote, position)
            if end < 0:
                return quote
            position, quote = end + 3, ""
        else:
            found = _QUOTED.search(line, position)
            if found is None or found.group(0) == "#":
                return ""
            position, quote = found.end(), found.group(0) if found.group(0) in _TRIPLE else ""
