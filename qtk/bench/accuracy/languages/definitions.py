"""Finds definitions in a source: the function that was asked for, where it ends, and the helpers around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qtk.bench.accuracy.languages.source_scan import (
    BRACED,
    blanked,
    block_end,
    helper_name,
    indented_end,
    last_line_end,
)
from qtk.bench.accuracy.suites.tasks import Task

_JAVA_METHOD = (
    r"^[^\S\n]*(?:@\w+(?:\([^)\n]*\))?\s+)*(?:(?:public|private|protected|static|final|synchronized)\s+)*"
    r"(?:<[\w, ]+>\s+)?(?!(?:return|new|else|throw)\b)[\w.]+[\w<>\[\],.? ]*\s+{name}\s*\([^;{{}}]*\)\s*"
    r"(?:throws\s+[\w., ]+)?\{{"
)


def definition(task: Task) -> re.Pattern[str]:
    """What a definition of the function that the tests call begins with."""
    name = re.escape(task.entry)
    return re.compile(
        {
            "python": rf"^(?:async\s+)?def\s+{name}\s*\(",
            "javascript": rf"^(?:export\s+(?:default\s+)?)?(?:(?:(?:const|let|var)\s+)?{name}\s*=(?![=>])"
            rf"|(?:async\s+)?function\s*\*?\s*{name}\s*\()",
            "go": rf"^func\s+{name}\s*[(\[]",
            "java": _JAVA_METHOD.format(name=name),
            "cpp": rf"^[A-Za-z_][\w:<>,&*\s]*[\s&*>]{name}\s*\([^;{{}}]*\)\s*(?:const\s*)?\{{",
            "rust": rf"^(?:pub\s+)?fn\s+{name}\s*[<(]",
            "swift": rf"^func\s+{name}\s*[<(]",
            "php": rf"^function\s+{name}\s*\(",
            "d": rf"^[A-Za-z_][\w!()\[\], .]*\s{name}\s*\(",
            "r": rf"^{name}\s*(?:<-|=)\s*function\b",
            "lua": rf"^(?:local\s+)?function\s+{name}\s*\(|^(?:local\s+)?{name}\s*=\s*function\b",
            "julia": rf"^function\s+{name}\s*\(|^{name}\([^\n]*\)[^\n=]*=[^=]",
            "racket": rf"^\(define\s+\({name}[\s)]",
            "perl": rf"^sub\s+{name}\b",
            "ruby": rf"^def\s+{name}\b",
            "bash": rf"^(?:function\s+)?{name}\s*\(\)",
        }[task.language],
        re.MULTILINE,
    )


# Here no quote in the words of an answer can take the code behind it for a string's.
_BLANKED = frozenset({"cpp", "java", "javascript", "go"})


def found_definitions(code: str, task: Task) -> list[re.Match[str]]:
    """Where the code begins to define the function that the tests call, comments and strings left out."""
    return list(definition(task).finditer(blanked(code, task.language) if task.language in _BLANKED else code))


def defines(code: str, task: Task) -> bool:
    """Whether the code defines the function that the tests call."""
    return bool(found_definitions(code, task))


@dataclass(frozen=True)
class Defined:
    """A definition in a source: the name it gives, and from where to where it reaches (end: just behind it)."""

    name: str
    start: int
    end: int


def definitions(source: str, language: str, depth: int = 0) -> Iterator[Defined]:
    """The whole definitions inside `depth` open braces, in languages with braces. Unfinished ones are left out."""
    plain, position, open_blocks = blanked(source, language), 0, 0
    while position < len(plain):
        line = plain[position : (plain.find("\n", position) + 1 or len(plain) + 1) - 1]
        name = helper_name(line, language) if open_blocks == depth else None
        end = _definition_end(plain, position) if name and not _only_opens_class(line, depth) else None
        if name and end is not None:
            yield Defined(name, position, end)
            position = end
        else:
            open_blocks += line.count("{") - line.count("}")
            position += len(line) + 1


def _only_opens_class(line: str, depth: int) -> bool:
    """Of a source that is read inside its classes, the class itself is no definition."""
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


def without_definitions(source: str, language: str, names: set[str]) -> str:
    """The source without its definitions of these names: a second definition is an error in most languages."""
    kept, position = [], 0
    for found in definitions(source, language):
        if found.name in names:
            kept.append(source[position : found.start])
            position = found.end
    return "".join(kept) + source[position:]


_PYTHON_SIGN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*|[()\[\]{}:]')


def python_definition_end(text: str, start: int) -> int | None:
    """Index where the Python definition that begins at `start` certainly ends; None while it may go on."""
    depth = 0
    for found in _PYTHON_SIGN.finditer(text, start):
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


def whole_end(task: Task, code: str) -> tuple[int | None, bool]:
    """Where the function that the code defines ends, helpers included that it uses; and whether that is certain."""
    found = next(iter(found_definitions(code, task)), None)
    if found is None:
        return None, False
    if task.language == "python":
        end = python_definition_end(code, found.start())
    elif task.language in BRACED:
        end = _braced_end(task, code, found)
    else:
        after = last_line_end(code[found.end() :], task.language)
        end = None if after is None else found.end() + after
    return (None, False) if end is None else end_with_helpers(task, code, end)


def _braced_end(task: Task, code: str, found: re.Match[str]) -> int | None:
    if task.language == "java":
        for header in re.finditer(r"\bclass\s+\w+[^{]*\{", code[: found.start()]):
            end = block_end(code[header.end() :], "java", 1)
            if end is None or header.end() + end > found.start():  # the class that holds it
                return None if end is None else header.end() + end
    plain = blanked(code, task.language)
    opening = _opening(task, plain, found)
    if opening is None:
        return None
    if plain[opening] != "{":
        return _expression_end(plain, opening)
    end = block_end(code[opening:], task.language, 0)
    return None if end is None else opening + end


def _opening(task: Task, plain: str, found: re.Match[str]) -> int | None:
    """Where the body begins: at its brace, or an arrow function's expression where it has none."""
    position = found.end()
    if plain[position - 1] == "{":
        return position - 1
    if task.language == "javascript" and plain[position - 1] != "(":
        arrow = re.compile(r"\s*(?:async\s+)?(?:function\s*\*?\s*\w*\s*)?").match(plain, position)
        position = arrow.end() if arrow else position
        if plain[position : position + 1] == "(":
            position += 1
    if plain[position - 1] == "(":
        position = _behind_parenthesis(plain, position) or len(plain)
    if task.language == "javascript" and (arrow := re.compile(r"\s*(?:\w+\s*)?=>\s*").match(plain, position)):
        return arrow.end() if arrow.end() < len(plain) else None
    opening = plain.find("{", position)
    if task.language == "go" and opening >= 0 and plain[:opening].endswith(("interface", "struct")):
        opening = plain.rfind("{", opening, plain.find("\n", opening))  # a type in the header
    return opening if opening >= 0 else None


def _behind_parenthesis(plain: str, position: int) -> int | None:
    """Behind the parenthesis that closes the one open at `position`."""
    depth = 1
    for index in range(position, len(plain)):
        depth += (plain[index] == "(") - (plain[index] == ")")
        if depth == 0:
            return index + 1
    return None


def _expression_end(plain: str, start: int) -> int | None:
    """Behind an expression: its semicolon, or the end of a line after which nothing goes on with it."""
    depth = 0
    for index in range(start, len(plain)):
        character = plain[index]
        depth += (character in "([{") - (character in ")]}")
        if depth < 0 or (depth == 0 and character == ";"):
            return index + (depth == 0)
        if character == "\n" and depth == 0 and (rest := plain[index:].lstrip()) and rest[0] not in ".?:+-*/%&|=,<>":
            return index + 1
    return None


_COMMENT_SIGNS = ("#", "//", "/*", "*", ";", "--")


def end_with_helpers(task: Task, text: str, end: int) -> tuple[int | None, bool]:
    """From the end of the function: the end of the helpers behind it that it uses; and whether that is certain.

    None while a helper is open. It is certain once the line after it is there in full and begins no such helper.
    """
    while True:
        following = [line for line in text[end:].split("\n")[:-1] if line.strip()]
        lines = [line for line in following if not line.lstrip().startswith(_COMMENT_SIGNS)]
        decorators = 0
        while task.language == "python" and decorators < len(lines) and lines[decorators].startswith("@"):
            decorators += 1
        if decorators == len(lines):
            return end, False
        name = helper_name(lines[decorators], task.language)
        if name is None or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text[:end]):
            return end, True
        after = _helper_end(task, text, text.index(lines[decorators], end))
        if after is None:
            return None, False
        end = after


def _helper_end(task: Task, text: str, start: int) -> int | None:
    if task.language == "python":
        return python_definition_end(text, start)
    if task.language in BRACED:
        after = block_end(text[start:], task.language, 0)
    else:
        line_end = text.index("\n", start) + 1
        start, after = line_end, last_line_end(text[line_end:], task.language)
    return None if after is None else start + after
