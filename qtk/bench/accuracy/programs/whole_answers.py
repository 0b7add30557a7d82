"""Answers that define the function themselves: which part of them is code, and what of the prompt has to stand before it."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from qtk.bench.accuracy.languages.definitions import definitions, found_definitions, whole_end, without_definitions
from qtk.bench.accuracy.languages.source_scan import BRACED, block_end, without_block
from qtk.bench.accuracy.programs.assemble import whole
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task

_CODE_START = {
    "python": re.compile(
        r"^(?:def |class |import |from \w+(?:\.\w+)* import|@\w|async def |[A-Za-z_]\w* *=[^=])", re.MULTILINE
    ),
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


_JS_EXPORT_LIST = re.compile(r"^export\s*(?:\{[^}]*\}|default\s+\w+)\s*;?[^\S\n]*$", re.MULTILINE)
_JS_EXPORT = re.compile(r"^export\s+(?:default\s+)?(?=(?:const|let|var|async|function|class|\w+\s*=)\b)", re.MULTILINE)
_PYTHON_FUTURE = re.compile(r"^from\s+__future__\s+import\s[^\n]*\n", re.MULTILINE)
# What an example of use begins with, in column 0 behind the function: never a part of it.
_PYTHON_BEHIND = re.compile(r"^(?:assert|print|if|class|\"\"\"|'''|<\||```)", re.MULTILINE)


def whole_source(suite: Suite, task: Task, code: str) -> str:
    """The source before the tests, when `code` defines the function: the prompt's imports and helpers, then the code."""
    if suite.layout == "mbpp":
        return whole(suite, task, code, "")
    if task.language == "java":
        return _java_source(task, code, "Problem" if suite.layout == "multipl-e" else "Solution")
    if task.language == "python":
        future = "".join(_PYTHON_FUTURE.findall(code))  # Python wants these lines before everything else
        return future + whole(suite, task, _PYTHON_FUTURE.sub("", code), _preamble(task, code))
    if task.language == "javascript":
        code = _JS_EXPORT.sub("", _JS_EXPORT_LIST.sub("", code))
    if task.language == "cpp":
        code = without_block(code, "cpp", _CPP_MAIN)
    if task.language in _OTHER_MAIN:
        code = without_block(code, task.language, _OTHER_MAIN[task.language])
    if task.language == "go":
        code = without_block(code, "go", _GO_MAIN)
        return whole(suite, task, _preamble(task, code).replace(task.imports, "", 1) + code, "")
    return whole(suite, task, code, _preamble(task, code))


def _preamble(task: Task, code: str) -> str:
    """What of the prompt stands before the function that was asked for, without the helpers that the code has itself."""
    found = found_definitions(task.prompt, task)
    before = task.prompt[: found[-1].start()] if found else task.prompt
    if task.language not in BRACED:
        return before
    return without_definitions(before, task.language, {one.name for one in definitions(code, task.language)})


def _java_source(task: Task, code: str, name: str) -> str:
    """The prompt's imports and the answer's, then a class of this name; MultiPL-E's tests close it themselves."""
    imports = "".join(line + "\n" for line in task.prompt.split("\n") if line.startswith("import "))
    own = "".join(line.strip() + "\n" for line in code.split("\n") if re.match(r"\s*import\s+[\w.* ]+;", line))
    body = re.sub(r"^\s*(?:import\s+[\w.* ]+;|package\s+[\w.]+;)[^\n]*\n", "", code, flags=re.MULTILINE)
    body = _class_renamed(task, body, name)
    body = without_block(body, "java", _JAVA_MAIN)
    if not re.search(rf"\bclass\s+{name}\b", body):
        body = f"class {name} {{\n{body}\n}}\n"
    body = re.sub(r"\bpublic\s+((?:final\s+|abstract\s+)*class)\b", r"\1", body)
    body = without_block(body, "java", _JAVA_MAIN_METHOD)
    if task.closing:
        return f"{imports}{own}{_left_open(body, name)}\n"
    return f"{imports}{own}{_with_prompts_methods(task, body, name)}\n"


def _left_open(body: str, name: str) -> str:
    """The class without its last brace, which the tests bring; what stands behind the class goes before it."""
    header = re.search(rf"\bclass\s+{name}\b[^{{]*\{{", body)
    end = block_end(body[header.end() :], "java", 1) if header else None
    if header is None or end is None:
        return body
    inside, behind = body[: header.end() + end - 1], body[header.end() + end :]
    return behind.strip() + "\n" + inside


def _with_prompts_methods(task: Task, body: str, name: str) -> str:
    """The class with those of the prompt's methods that it lacks: its answer or its tests may call them."""
    prompts = [
        one for one in definitions(task.prompt, "java", 1) if not found_definitions(body, replace(task, entry=one.name))
    ]
    methods = "".join(f"{task.prompt[one.start : one.end]}\n" for one in prompts)
    return re.sub(rf"\bclass\s+{name}\b[^{{]*\{{", lambda found: f"{found.group(0)}\n{methods}", body, count=1)


def _class_renamed(task: Task, code: str, name: str) -> str:
    """The class that holds the function that was asked for, under the name that the tests want."""
    found = next(iter(found_definitions(code, task)), None)
    headers = list(re.finditer(r"\bclass\s+(\w+)[^{]*\{", code[: found.start()])) if found else []
    if found is None or any(header.group(1) == name for header in headers):
        return code
    for header in headers:
        end = block_end(code[header.end() :], "java", 1)
        if end is None or header.end() + end > found.start():
            return re.sub(rf"\b{header.group(1)}\b", name, code)
    return code


def code_part(text: str, task: Task) -> str:
    """The code of an answer that has words around it but no fence: to where the function and its own helpers end."""
    found = next(iter(found_definitions(text, task)), None)
    begins = _CODE_START[task.language].search(text) if task.language in _CODE_START else None
    starts = [one.start() for one in (found, begins) if one]
    code = text[min(starts) :] if starts else text
    end, _ = whole_end(task, code)
    if end is not None:
        code = code[:end].rstrip("\n") + "\n"
    return python_part(code, task) if task.language == "python" else code


def python_part(text: str, task: Task) -> str:
    """From the first line that looks like code, as many lines as parse; no example of use behind the function."""
    begins = _CODE_START["python"].search(text)
    text = text[begins.start() :] if begins else text
    found = next(iter(found_definitions(text, task)), None)
    behind = _PYTHON_BEHIND.search(text, found.end()) if found and whole_end(task, text)[0] is None else None
    if behind and _parses(text[: behind.start()]):  # a docstring may have such a line in column 0
        text = text[: behind.start()]
    lines = text.split("\n")
    for count in range(len(lines), 0, -1):
        if _parses("\n".join(lines[:count])):
            code = "\n".join(lines[:count]) + "\n"
            # Words before it that look like code, and do not parse with it, must not cost the function.
            return code if found is None or found.start() < len(code) else python_part(text[found.start() :], task)
    return "\n".join(lines)


def _parses(source: str) -> bool:
    """Whether it is a Python program that says something."""
    try:
        return bool(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
