"""Reads just enough of a programming language to know where a function ends: strings, comments, braces, indentation."""

from __future__ import annotations

import re

# String and comment forms by language; what they hold must not count as braces.
_SKIP = {
    "cpp": re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL),
    "java": re.compile(r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL),
    "javascript": re.compile(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`(?:\\.|[^`\\])*`'
        r"|(?<=[(,=+:\[!&|?{};\n])\s*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/",
        re.DOTALL,
    ),
    "go": re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|`[^`]*`', re.DOTALL),
    "d": re.compile(r'//[^\n]*|/\*.*?\*/|/\+.*?\+/|"(?:\\.|[^"\\])*"|`[^`]*`|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL),
    # A quote that no second one closes after one character begins a lifetime.
    "rust": re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\(?:u\{\w*\}|x\w\w|.)|[^\'\\\n])\'', re.DOTALL),
    "swift": re.compile(r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|"(?:\\.|[^"\\\n])*"', re.DOTALL),
    "php": re.compile(r'(?://|#)[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL),
    "r": re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL),
}
BRACED = frozenset(_SKIP)


def blanked(source: str, language: str) -> str:
    """The source with strings and comments blanked out, every other character where it was."""
    return _SKIP[language].sub(lambda found: re.sub(r"[^\n]", " ", found.group(0)), source)


def open_braces(source: str, language: str) -> int:
    """How many braces are open at the end."""
    plain = blanked(source, language)
    return plain.count("{") - plain.count("}")


def block_end(source: str, language: str, depth: int) -> int | None:
    """Index just behind the brace that closes `depth` open blocks; None while one is still open."""
    for index, character in enumerate(blanked(source, language)):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return index + 1
    return None


def without_block(source: str, language: str, header: re.Pattern[str]) -> str:
    """The source without the first block (class, function) whose header matches."""
    found = header.search(blanked(source, language))
    if found is None:
        return source
    opening = source.find("{", found.start())
    end = block_end(source[opening:], language, 0) if opening >= 0 else None
    return source[: found.start()] + (source[opening + end :] if end is not None else "")


# Where blocks are told by words or parentheses, or braces stand for too much else: the line in column 0 that ends a
# function. Racket's last line ends with it, and is known by the next thing in column 0.
_LAST_LINE = {
    **dict.fromkeys(("lua", "julia", "ruby"), re.compile(r"^end\b[^\n]*", re.MULTILINE)),
    **dict.fromkeys(("perl", "bash"), re.compile(r"^\}[^\n]*", re.MULTILINE)),
    "racket": re.compile(r"^(?=[(;#])", re.MULTILINE),
}


def last_line_end(text: str, language: str) -> int | None:
    """Index behind the line that ends a function, in the languages whose blocks are not counted; None while there is none."""
    begun = len(text) - len(text.lstrip())
    found = _LAST_LINE[language].search(text, begun + 1)
    return found.end() if found else None


def indented_end(text: str) -> int | None:
    """Index where an indented Python block certainly ends: the first later line that starts in column 0.

    A comment in column 0 does not end it, nor what stands inside a triple-quoted string. None while the block may go
    on, or when the text does not begin with an indented line (comments in column 0 before it set aside).
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
    """The triple quote that is open after the line. One inside a string of single quotes opens nothing."""
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


# The name that a definition at the start of a line gives, by language.
_NEXT_DEFINITION = {
    "python": re.compile(r"(?:async\s+)?(?:def|class)\s+(\w+)"),
    "cpp": re.compile(r"(?:struct|class)\s+(\w+)|[A-Za-z_][\w:<>,&* ]*?[\s&*>](\w+)\s*\("),
    "javascript": re.compile(r"(?:async\s+)?(?:function|const|let|var|class)\s+(\w+)"),
    "go": re.compile(r"(?:func|type)\s+(\w+)"),
    "java": re.compile(
        r"\s*(?:public\s+|final\s+|abstract\s+|static\s+)*class\s+(\w+)"
        r"|\s*(?:(?:public|private|protected|static|final)\s+)+[\w<>\[\],.? ]+\s+(\w+)\s*\("
    ),
    "d": re.compile(r"(?:struct|class)\s+(\w+)|[A-Za-z_][\w!()\[\], .]*?\s(\w+)\s*\("),
    "rust": re.compile(r"(?:pub\s+)?(?:fn|struct|enum|const|static|trait)\s+(\w+)"),
    "swift": re.compile(r"(?:func|struct|class|enum|let|var)\s+(\w+)"),
    "php": re.compile(r"(?:function|class|const)\s+(\w+)"),
    "r": re.compile(r"([\w.]+)\s*(?:<-|=)\s*function"),
    "lua": re.compile(r"(?:local\s+)?function\s+(\w+)|local\s+(\w+)\s*="),
    "julia": re.compile(r"(?:function|struct|const)\s+(\w+)"),
    "ruby": re.compile(r"(?:def|class|module)\s+(\w+)"),
    "perl": re.compile(r"sub\s+(\w+)"),
    "bash": re.compile(r"(?:function\s+)?(\w+)\s*\(\)"),
    "racket": re.compile(r"\(define\s+\(?([^\s()]+)"),
}


def helper_name(line: str, language: str) -> str | None:
    """The name that this line begins to define at the top level, or None."""
    found = _NEXT_DEFINITION[language].match(line)
    return next((name for name in found.groups() if name), None) if found else None


def last_defined(source: str, language: str) -> str | None:
    """The name that the last definition of a source gives: in a prompt, the function that is to be completed."""
    names = [helper_name(line, language) for line in source.split("\n")]
    return next((name for name in reversed(names) if name), None)
