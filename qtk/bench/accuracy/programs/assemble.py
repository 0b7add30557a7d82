"""The source before the tests: header, prompt and answer put together as each language wants it."""

from __future__ import annotations

import re

from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task

# Headers that codefuse-evaluation puts before C++ programs, where the prompt has not the very same line.
_CPP_INCLUDES = (
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream"),
    "stdexcept",
)
# Go packages that an answer may use without saying so; by the name it is used under.
_GO_PACKAGES = {
    path.rsplit("/", 1)[-1]: path
    for path in ("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand", "crypto/md5")
}
_GO_IMPORTS = re.compile(r'^import\s*(?:\(([^)]*)\)|((?:[\w.]+[^\S\n]+)?"[^"]+"))[^\S\n]*;?[^\S\n]*\n?', re.MULTILINE)
_GO_IMPORT = re.compile(r'(?:([\w.]+)[^\S\n]+)?"([^"]+)"')
_GO_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|`[^`]*`', re.DOTALL)


def continued(suite: Suite, task: Task, continuation: str) -> str:
    """The source when the model continued the prompt: prompt + continuation, with what the language wants around it."""
    if task.language == "go":
        return go_source(task, task.prompt.replace(task.imports, "", 1) + continuation, task.imports)
    if suite.layout == "multipl-e":
        return task.prompt + continuation
    if task.language == "cpp":
        return cpp_includes(task.prompt) + task.prompt + continuation
    if suite.layout == "mbpp":
        return f"{suite.python_header}{continuation}\n{task.setup}\n"
    return f"{header(suite, task)}{task.prompt}{continuation}"


def whole(suite: Suite, task: Task, code: str, preamble: str) -> str:
    """The source when the answer defines the function itself; `preamble` is what of the prompt stands before it."""
    if task.language == "go":
        return go_source(task, code, task.imports)
    if suite.layout == "multipl-e":
        return preamble + _without_lines_of(preamble, code)
    if task.language == "cpp":
        return cpp_includes(preamble + code) + preamble + code
    if suite.layout == "mbpp":
        return f"{suite.python_header}{code}\n{task.setup}\n"
    return f"{header(suite, task)}{preamble}{code}"


# What a source may say only once: the language line, the opening tag, imports.
_ONCE = re.compile(r"#lang\b|<\?php|use\s|import\s|package\s|require\b")


def _without_lines_of(preamble: str, code: str) -> str:
    there = {line.strip() for line in preamble.split("\n") if _ONCE.match(line.strip())}
    lines = [line for line in code.split("\n") if line.strip() not in there]
    return "\n".join(lines).lstrip("\n") if there else code


def header(suite: Suite, task: Task) -> str:
    """The suite's own lines before a program of this language."""
    return suite.python_header if task.language == "python" else ""


def cpp_includes(present: str) -> str:
    """The usual headers that `present` does not include yet."""
    return "".join(f"#include<{name}>\n" for name in _CPP_INCLUDES if f"#include<{name}>" not in present)


def go_source(task: Task, body: str, prompt_imports: str) -> str:
    """Package clause and imports, then `body`.

    Imports of the prompt and of the answer are joined and kept only where the body uses them, because Go refuses an
    unused import; the tests' own set-up has its imports already.
    """
    imported = dict.fromkeys([*_go_imports(prompt_imports), *_go_imports(body)])
    body = re.sub(r"^package\s+\w+[^\S\n]*\n", "", _GO_IMPORTS.sub("", body), flags=re.MULTILINE)
    named = {alias or path.rsplit("/", 1)[-1] for alias, path in imported}
    imported |= dict.fromkeys(("", path) for name, path in _GO_PACKAGES.items() if name not in named)
    used = set(re.findall(r"\b(\w+)\.", _GO_NOISE.sub(" ", body))) | {".", "_"}
    there = set(_go_imports(task.setup))
    wanted = [
        (path, alias)
        for alias, path in imported
        if (alias or path.rsplit("/", 1)[-1]) in used and (alias, path) not in there
    ]
    lines = "".join(f'    {alias} "{path}"\n' if alias else f'    "{path}"\n' for path, alias in sorted(wanted))
    # A second import declaration may stand right after the first.
    block = f"import (\n{lines})\n" if wanted else ""
    return f"{task.setup}\n{block}{body}"


def _go_imports(source: str) -> list[tuple[str, str]]:
    """(alias or nothing, path) of every import."""
    found = []
    for block, single in _GO_IMPORTS.findall(source):
        found += _GO_IMPORT.findall(re.sub(r"//[^\n]*", "", block) or single)
    return found


def reference_source(suite: Suite, task: Task) -> str:
    """The known solution as a source before the tests."""
    return continued(suite, task, task.reference.rstrip("\n") + "\n" + task.closing if task.closing else task.reference)
