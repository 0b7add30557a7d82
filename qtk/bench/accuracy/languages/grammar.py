"""What definitions look like in a language, and how they are found in a source: the function that was asked for, where
it ends, and the helpers around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qtk.bench.accuracy.languages.blocks import Blocks, Braces

_COMMENT_SIGNS = ("#", "//", "/*", "*", ";", "--")


@dataclass(frozen=True)
class Defined:
    """A definition in a source: the name that it gives, and from where to where it reaches (end: just behind it)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class End:
    """Where a function ends, with the helpers behind it that it uses (None: still open), and whether that is certain."""

    index: int | None
    certain: bool


OPEN = End(None, False)


@dataclass(frozen=True)
class Grammar:
    """The little of a language's grammar that answers are read by.

    definition: a regular expression for the beginning of a function's definition, with NAME in place of the function's
    name. next_definition: matches a line that defines something at the top level; its group is the name. code_start:
    matches a line with which code begins after words; None: only the function itself is looked for. decorator: what a
    line begins with that belongs to the definition in the next line.
    """

    blocks: Blocks
    definition: str
    next_definition: re.Pattern[str]
    code_start: re.Pattern[str] | None = None
    decorator: str = ""

    def found(self, name: str, code: str) -> list[re.Match[str]]:
        """Where the code begins to define the function of this name, comments and strings left out where possible."""
        pattern = re.compile(self.definition.replace("NAME", re.escape(name)), re.MULTILINE)
        return list(pattern.finditer(self.blocks.searched(code)))

    def defines(self, name: str, code: str) -> bool:
        """Whether the code defines the function of this name."""
        return bool(self.found(name, code))

    def helper_name(self, line: str) -> str | None:
        """The name that this line begins to define at the top level, or None."""
        found = self.next_definition.match(line)
        return next((name for name in found.groups() if name), None) if found else None

    def last_defined(self, source: str) -> str:
        """The name that the last definition of a source gives: in a prompt, the function to complete. Empty: there is none."""
        names = [self.helper_name(line) for line in source.split("\n")]
        return next((name for name in reversed(names) if name), "")

    def definitions(self, source: str, depth: int = 0) -> Iterator[Defined]:
        """The whole definitions inside `depth` open braces. Unfinished ones are left out; none without braces."""
        if not isinstance(self.blocks, Braces):
            return
        plain, position, open_blocks = self.blocks.blanked(source), 0, 0
        while position < len(plain):
            line = plain[position : (plain.find("\n", position) + 1 or len(plain) + 1) - 1]
            name = self.helper_name(line) if open_blocks == depth else None
            end = _definition_end(plain, position) if name and not _only_opens_class(line, depth) else None
            if name and end is not None:
                yield Defined(name, position, end)
                position = end
            else:
                open_blocks += line.count("{") - line.count("}")
                position += len(line) + 1

    def without_definitions(self, source: str, names: set[str]) -> str:
        """The source without its definitions of these names: a second definition is an error in most languages."""
        kept, position = [], 0
        for defined in self.definitions(source):
            if defined.name in names:
                kept.append(source[position : defined.start])
                position = defined.end
        return "".join(kept) + source[position:]

    def end_of(self, name: str, code: str) -> End:
        """Where the function of this name ends that the code defines."""
        found = next(iter(self.found(name, code)), None)
        end = None if found is None else self.blocks.definition_end(code, found)
        return OPEN if end is None else self.end_with_helpers(code, end)

    def end_with_helpers(self, text: str, end: int) -> End:
        """From the end of the function itself: the end of the helpers behind it that it uses.

        The end is certain once the line after it is there in full and begins no such helper.
        """
        while True:
            following = [line for line in text[end:].split("\n")[:-1] if line.strip()]
            lines = [line for line in following if not line.lstrip().startswith(_COMMENT_SIGNS)]
            decorators = 0
            while self.decorator and decorators < len(lines) and lines[decorators].startswith(self.decorator):
                decorators += 1
            if decorators == len(lines):
                return End(end, False)
            name = self.helper_name(lines[decorators])
            if name is None or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text[:end]):
                return End(end, True)
            after = self.blocks.helper_end(text, text.index(lines[decorators], end))
            if after is None:
                return OPEN
            end = after


def _only_opens_class(line: str, depth: int) -> bool:
    """Where a source is read inside its classes, the class itself is not a definition."""
    return depth > 0 and re.search(r"\bclass\b", line) is not None


def _definition_end(plain: str, start: int) -> int | None:
    """Behind the block that begins at a definition, or behind its semicolon where that comes first."""
    opening, semicolon = plain.find("{", start), plain.find(";", start)
    if semicolon >= 0 and (opening < 0 or semicolon < opening):
        return semicolon + 1
    depth = 0
    for index in range(max(opening, 0), len(plain) if opening >= 0 else 0):
        depth += (plain[index] == "{") - (plain[index] == "}")
        if depth == 0:
            return index + 1
    return None
