"""qtk's own way from a model's answer to a program, aware of the language.

(1) A fenced block, if there is one. (2) If the code defines the function that was asked for, it is used whole, with the
prompt's imports and helpers before it. (3) Else it continues the prompt, and is cut where the function ends.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Literal

from qtk.bench.accuracy.programs import continued, whole
from qtk.bench.accuracy.source_scan import (
    BRACED,
    block_end,
    helper_name,
    indented_end,
    last_line_end,
    open_braces,
    without_block,
)
from qtk.bench.accuracy.suites import Suite
from qtk.bench.accuracy.tasks import Task

How = Literal["fenced", "whole", "continuation", "reference"]
_FENCE = re.compile(r"```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_TAGS = {
    "python": {"python", "py", "python3"},
    "cpp": {"cpp", "c++", "cc", "c"},
    "java": {"java"},
    "javascript": {"javascript", "js", "node"},
    "go": {"go", "golang"},
    "rust": {"rust", "rs"},
    "julia": {"julia", "jl"},
    "racket": {"racket", "rkt", "scheme", "lisp"},
    "perl": {"perl", "pl"},
    "ruby": {"ruby", "rb"},
    "bash": {"bash", "sh", "shell"},
}
_CODE_START = {
    "python": re.compile(r"^(?:def |class |import |from \w+(?:\.\w+)* import|@\w|async def )", re.MULTILINE),
    "cpp": re.compile(
        r"^(?:#include|using |template|struct |class |[A-Za-z_][\w:<>,&* ]*\([^;\n]*\)\s*\{)", re.MULTILINE
    ),
    "java": re.compile(
        r"^\s*(?:import |package |(?:public |final |abstract )*class |public |private |static )", re.MULTILINE
    ),
    "javascript": re.compile(r"^(?:const |let |var |function |async function |class |import )", re.MULTILINE),
    "go": re.compile(r"^(?:package |import |func |type |var |const )", re.MULTILINE),
}
_CPP_MAIN = re.compile(r"\bint\s+main\s*\(")
_JAVA_MAIN = re.compile(r"(?:public\s+)?(?:final\s+)?class\s+Main\b")
_JAVA_MAIN_METHOD = re.compile(r"public\s+static\s+void\s+main\s*\(")
_GO_MAIN = re.compile(r"^func\s+main\s*\(\s*\)", re.MULTILINE)
# MultiPL-E's tests bring a main of their own in these.
_OTHER_MAIN = {
    "rust": re.compile(r"^(?:pub\s+)?fn\s+main\s*\(", re.MULTILINE),
    "d": re.compile(r"^(?:void|int)\s+main\s*\(", re.MULTILINE),
}


@dataclass(frozen=True)
class Extracted:
    """The source before the tests, and by which of the rules it came about."""

    source: str
    how: How


def extract(suite: Suite, task: Task, answer: str) -> Extracted:
    """The program of an answer."""
    answer = _before_closing_fence(answer)
    block = fenced_block(answer, task)
    code = block if block is not None else answer
    if suite.layout == "mbpp":
        code = code if block is not None else _python_part(code)
        return Extracted(whole(suite, task, code, ""), "fenced" if block is not None else "whole")
    if defines(code, task):
        if block is None:
            code = _code_part(code, task)
        return Extracted(_whole_source(suite, task, code), "fenced" if block is not None else "whole")
    return Extracted(
        continued(suite, task, continuation(task, code)), "fenced" if block is not None else "continuation"
    )


def _before_closing_fence(answer: str) -> str:
    """An answer that begins as the indented continuation of code is over at a fence, which closes what the prompt began."""
    before, fence, _ = answer.partition("```")
    lines = [line for line in before.split("\n") if line.strip()]
    return before if fence and lines and lines[0][0].isspace() else answer


def fenced_block(answer: str, task: Task) -> str | None:
    """The fenced block to use: of those tagged with the language (else of all) one that defines the function, else the first."""
    blocks = [(tag.lower(), code + "\n") for tag, code in _FENCE.findall(answer)]
    tags = _TAGS.get(task.language, {task.language})
    ours = [code for tag, code in blocks if tag in tags] or [code for tag, code in blocks if not tag]
    if not ours:
        return None
    return next((code for code in ours if defines(code, task)), ours[0])


def defines(code: str, task: Task) -> bool:
    """Whether the code defines the function that the tests call."""
    return _definition(task).search(code) is not None


def _definition(task: Task) -> re.Pattern[str]:
    name = re.escape(task.entry)
    return re.compile(
        {
            "python": rf"^(?:async\s+)?def\s+{name}\s*\(",
            "javascript": rf"^(?:export\s+)?(?:(?:const|let|var)\s+{name}\s*=|(?:async\s+)?function\s+{name}\s*\()",
            "go": rf"^func\s+{name}\s*\(",
            "java": rf"^\s*(?:(?:public|private|protected|static|final)\s+)+[\w<>\[\],.? ]+\s+{name}\s*\(",
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


def continuation(task: Task, text: str) -> str:
    """The part of the text that continues the prompt: to where the function ends, and the helpers of its own behind it."""
    if task.language == "python":
        first = next((line for line in text.split("\n") if line.strip()), "")
        if first and not first[0].isspace():  # a body that lost its indentation
            text = "\n".join(f"    {line}" if line.strip() else line for line in text.split("\n"))
    end, _ = _function_end(task, text)
    if end is None and task.closing:  # another harness took it off, or the answer was cut short
        return text.rstrip("\n") + "\n" + task.closing
    return text if end is None else text[:end].rstrip("\n") + "\n"


def certain_end(suite: Suite, task: Task, text: str, *, chat: bool) -> bool:
    """Whether nothing that could still be generated would change what `extract` takes: generation may stop."""
    if _before_closing_fence(text) != text:
        return True
    if "```" in text or chat:
        return text.count("```") >= 2 and fenced_block(text, task) is not None
    if suite.layout == "mbpp" or defines(text, task):
        return False
    return _function_end(task, text)[1]


_COMMENT_SIGNS = ("#", "//", "/*", "*", ";", "--")


def _function_end(task: Task, text: str) -> tuple[int | None, bool]:
    """Where the function ends that the text continues, helpers included that it uses; and whether that is certain.

    None while it is open. It is certain once the line after it is there in full and begins no such helper.
    """
    depth = open_braces(task.prompt, task.language) if task.language in BRACED else 1
    end = _block_end(task, text, 1 if task.closing else depth)  # the tests' closing is never more than one block's
    while end is not None:
        following = [line for line in text[end:].split("\n")[:-1] if line.strip()]
        line = next((line for line in following if not line.lstrip().startswith(_COMMENT_SIGNS)), None)
        if line is None:
            return end, False
        name = helper_name(line, task.language)
        if name is None or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text[:end]):
            return end, True
        start = text.index(line, end)
        after = _block_end(task, text[start:] if task.language in BRACED else text[start + len(line) + 1 :], 0)
        if after is None:
            return None, False
        end = start + after + (0 if task.language in BRACED else len(line) + 1)
    return None, False


def _block_end(task: Task, text: str, depth: int) -> int | None:
    if task.language == "python":
        return indented_end(text)
    return block_end(text, task.language, depth) if task.language in BRACED else last_line_end(text, task.language)


def _whole_source(suite: Suite, task: Task, code: str) -> str:
    if task.language == "java":
        return _java_source(task, code, "Problem" if suite.layout == "multipl-e" else "Solution")
    if task.language == "cpp":
        code = without_block(code, "cpp", _CPP_MAIN)
    if task.language in _OTHER_MAIN:
        code = without_block(code, task.language, _OTHER_MAIN[task.language])
    if task.language == "go":
        code = without_block(code, "go", _GO_MAIN)
        helpers = task.prompt.replace(task.imports, "", 1).split(f"func {task.entry}(")[0]
        return whole(suite, task, helpers + code, "")
    return whole(suite, task, code, _preamble(task))


def _preamble(task: Task) -> str:
    """What of the prompt stands before the function that was asked for: imports and helpers."""
    found = list(_definition(task).finditer(task.prompt))
    return task.prompt[: found[-1].start()] if found else task.prompt


def _java_source(task: Task, code: str, name: str) -> str:
    """The prompt's imports and the answer's, then a class of this name; MultiPL-E's tests close it themselves."""
    imports = "".join(line + "\n" for line in task.prompt.split("\n") if line.startswith("import "))
    own = "".join(line.strip() + "\n" for line in code.split("\n") if re.match(r"\s*import\s+[\w.*]+;", line))
    body = re.sub(r"^\s*(?:import\s+[\w.* ]+;|package\s+[\w.]+;)[^\n]*\n", "", code, flags=re.MULTILINE)
    if task.closing:
        body = _class_renamed(task, body, name)
    body = without_block(body, "java", _JAVA_MAIN)
    if not re.search(rf"\bclass\s+{name}\b", body):
        body = f"class {name} {{\n{body}\n}}\n"
    body = re.sub(r"\bpublic\s+((?:final\s+|abstract\s+)*class)\b", r"\1", body)
    body = without_block(body, "java", _JAVA_MAIN_METHOD)
    if task.closing:
        header = re.search(rf"\bclass\s+{name}\b[^{{]*\{{", body)
        end = block_end(body[header.end() :], "java", 1) if header else None
        if header and end is not None:  # what stands behind the class goes before it
            inside, behind = body[: header.end() + end - 1], body[header.end() + end :]
            body = behind.strip() + "\n" + inside
    return f"{imports}{own}{body}\n"


def _class_renamed(task: Task, code: str, name: str) -> str:
    """The class that holds the function that was asked for, under the name that the tests want."""
    definition = _definition(task).search(code)
    headers = list(re.finditer(r"\bclass\s+(\w+)[^{]*\{", code[: definition.start()])) if definition else []
    if not headers or any(header.group(1) == name for header in headers):
        return code
    return re.sub(rf"\b{headers[0].group(1)}\b", name, code)


def _code_part(text: str, task: Task) -> str:
    """The code of an answer that has words around it but no fence."""
    if task.language == "python":
        return _python_part(text)
    found = _CODE_START.get(task.language, _definition(task)).search(text)
    code = text[found.start() :] if found else text
    definition = _definition(task).search(code)
    if task.language not in BRACED:
        end = last_line_end(code[definition.end() :], task.language) if definition else None
        return code if end is None or definition is None else code[: definition.end() + end] + "\n"
    opening = code.find("{", definition.end() - 1) if definition else -1
    if task.language == "go" and opening >= 0 and code[:opening].endswith("interface"):  # a type in the header
        opening = code.rfind("{", opening, code.find("\n", opening))
    if task.language == "java" and (header := re.search(r"\bclass\s+(?:Solution|Problem)\b[^{]*\{", code)):
        opening = header.end() - 1
    end = block_end(code[opening:], task.language, 0) if opening >= 0 else None
    return code if end is None else code[: opening + end] + "\n"


def _python_part(text: str) -> str:
    """From the first line that looks like code, as many lines as parse."""
    found = _CODE_START["python"].search(text)
    lines = text[found.start() :].split("\n") if found else text.split("\n")
    for count in range(len(lines), 0, -1):
        try:
            tree = ast.parse("\n".join(lines[:count]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if tree.body:
            return "\n".join(lines[:count]) + "\n"
    return "\n".join(lines)
