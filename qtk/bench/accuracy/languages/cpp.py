"""C++: g++ with the standard of the published numbers. An answer and its tests are two programs (`cpp_wire`)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from qtk.bench.accuracy.languages.assembly import Assembly, Frame
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces, behind_parenthesis
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.cpp_wire import Signature, answer_program, divided, tests_program
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Beside, Command, Job

# Headers that codefuse-evaluation puts before C++ programs, where the prompt does not have the very same line.
_INCLUDES = (
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream"),
    "stdexcept",
)
_USUAL, _EVERYTHING = _INCLUDES, ("assert.h", "bits/stdc++.h")
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)\s*\{")
_DIRECTIVE = re.compile(r"^[^\S\n]*#[^\n]*\n?", re.MULTILINE)
# A local object's destructor runs when main returns, but neither after exit() nor after a failed assert().
_AT_END = '#include <cstdio>\nstruct QtkEnd {{ ~QtkEnd() {{ std::fflush(stdout); std::fputs("{0}", stdout); }} }};\n'


def _absent_includes(present: str) -> str:
    """The usual headers that `present` does not include yet."""
    return "".join(f"#include<{name}>\n" for name in _INCLUDES if f"#include<{name}>" not in present)


class _Assembly(Assembly):
    """Adds the usual headers."""

    def header(self, frame: Frame, present: str) -> str:
        return "" if frame.complete else _absent_includes(present)


class _CodefuseRules(CodefuseRules):
    def source(self, task: Task, answer: str) -> str:
        return f"{_absent_includes(task.prompt)}{task.prompt}\n{answer}"


@dataclass(frozen=True)
class CppToolchain(Toolchain):
    """Two programs, the answer's and that of its tests; one where the values of the function cannot cross."""

    standard: str = "c++11"

    settings: ClassVar[frozenset[str]] = frozenset({"standard"})

    def prepare(self) -> None:
        for headers in (_USUAL, _EVERYTHING):
            precompiled(headers, self.standard)

    @property
    def readable(self) -> tuple[str, ...]:
        return tuple(
            str(path.parent) for headers in (_USUAL, _EVERYTHING) if (path := precompiled(headers, self.standard))
        )

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        limits = roomy(self.limits, 1024 * MIB, 64)
        parts = _Parts.of(task)
        if parts is None or not parts.signature.crosses:
            return self.refuted(self.shared_job(solution, task, environment), solution, task, environment)
        sentinel = new_sentinel()
        own = _own_signature(solution, task, parts.signature)
        answer = answer_program(parts.head, solution, parts.signature, own, task.entry, _moved(task))
        tests = tests_program(
            "".join(_DIRECTIVE.findall(task.tests)),
            parts.head,
            parts.helpers,
            _as_function(task.tests, "qtk_tests"),
            parts.signature,
            task.entry,
        )
        steps = (
            self._compiled("answer", answer),
            replace(self._compiled("tests", tests), files={"tests.cpp": tests}),  # when the answer is compiled already
            replace(self._run("./answer"), beside=Beside(("./tests",), sentinel)),
        )
        return Job({"answer.cpp": answer}, steps, sentinel, environment, limits)

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        """One program, with its tests behind the solution, whose definitions they then see."""
        sentinel = new_sentinel()
        tests = _MAIN.sub(lambda found: f"{found.group(0)} QtkEnd qtk_end;", task.tests, count=1)
        source = f"{solution}\n{_AT_END.format(sentinel)}{tests}"
        steps = (self._compiled("main", source), self._run("./main"))
        return Job({"main.cpp": source}, steps, sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

    def _compiled(self, name: str, source: str) -> Command:
        headers = _EVERYTHING if "#include<bits/stdc++.h>" in source else _USUAL
        precompiled_header = precompiled(headers, self.standard)
        included = ("-include", str(precompiled_header)) if precompiled_header else ()
        linker = ("-fuse-ld=gold",) if shutil.which("ld.gold") else ()  # three times as fast as the usual one
        libraries = ("-lcrypto", "-lssl") if "openssl/" in source else ()
        words = ("g++", f"-std={self.standard}", "-w", "-fmax-errors=5", *included, *linker)
        return self._compile(*words, f"{name}.cpp", "-o", name, *libraries)


@dataclass(frozen=True)
class _Parts:
    """What a prompt is made of: includes, types and the like; the functions before the one that was asked for; its signature."""

    head: str
    helpers: str
    signature: Signature

    @staticmethod
    def of(task: Task) -> _Parts | None:
        """None where the prompt's functions cannot be called from elsewhere, or the tests have no main."""
        grammar, prompt = CPP.grammar, task.prompt
        found = grammar.found(task.entry, prompt)
        if not found or not _MAIN.search(task.tests):
            return None
        entry = found[-1]
        signature = Signature.of(prompt[entry.start() : entry.end()], task.entry)
        if signature is None:
            return None
        definitions = [item for item in grammar.definitions(prompt) if item.start < entry.start()]
        functions = [item.start for item in definitions if "(" in prompt[item.start : item.end].split("{")[0]]
        first = min([*functions, entry.start()])
        head = prompt[:first]
        # The tests begin with includes of their own: those that stand there before a program are missing.
        usual = "" if "bits/stdc++.h" in head else _absent_includes(head)
        return _Parts(usual + head, prompt[first : entry.start()], signature)


def _own_signature(solution: str, task: Task, prompts: Signature) -> Signature:
    """The signature that the answer gives its function, where that can be read and has as many parameters; else the prompt's."""
    found = CPP.grammar.found(task.entry, solution)
    own = Signature.of(solution[found[0].start() : found[0].end()], task.entry) if len(found) == 1 else None
    return own if own and own.crosses_as(prompts) else prompts


def _moved(task: Task) -> tuple[bool, ...]:
    """For each argument of the function: whether the tests give it as a value somewhere, and not always as a variable. A
    function that takes a reference to a variable cannot be called with a value."""
    plain, values = CPP.grammar.blocks, list[bool]()
    for call in re.finditer(rf"\b(?:candidate|{re.escape(task.entry)})\s*\(", task.tests):
        end = behind_parenthesis(plain.searched(task.tests), call.end())
        given = divided(task.tests[call.end() : end - 1]) if end else []
        values += [False] * (len(given) - len(values))
        for number, argument in enumerate(given):
            values[number] = values[number] or not re.fullmatch(r"\s*[A-Za-z_]\w*\s*", argument)
    return tuple(values)


def _as_function(tests: str, name: str) -> str:
    """The tests without directives, which are at the top of the program, and with `main` under another name."""
    return _MAIN.sub(f"static int {name}() {{", _DIRECTIVE.sub("", tests), count=1)


@functools.cache
def precompiled(headers: tuple[str, ...], standard: str) -> Path | None:
    """A header that includes these and is compiled already, which makes compiling a program several times as fast. It is made
    once, in a folder of qtk's cache that programs can only read. None where that cannot be."""
    text = "".join(f"#include<{name}>\n" for name in headers)
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256(f"{standard}\n{version}\n{text}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qtk" / "cpp"
    header = cache / key / "usual.hpp"
    if header.with_name("usual.hpp.gch").exists():
        return header
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / key
            made.mkdir()
            (made / "usual.hpp").write_text(text)
            flags = (f"-std={standard}", "-w", "-x", "c++-header", "usual.hpp", "-o", "usual.hpp.gch")
            subprocess.run(["g++", *flags], cwd=made, check=True, capture_output=True)
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(header.parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return header


CPP = Language(
    name="cpp",
    title="C++",
    short=("c++",),
    tags=("c++", "cc", "c"),
    assembly=_Assembly(
        Grammar(
            blocks=Braces(
                re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL),
                search_blanked=True,
            ),
            definition=r"^[A-Za-z_][\w:<>,&*\s]*[\s&*>]NAME\s*\([^;{}]*\)\s*(?:const\s*)?\{",
            next_definition=re.compile(r"(?:struct|class)\s+(\w+)|[A-Za-z_][\w:<>,&* ]*?[\s&*>](\w+)\s*\("),
            code_start=re.compile(
                r"^(?:#include|using |template|struct |class |[A-Za-z_][\w:<>,&* ]*\([^;\n]*\)\s*\{)", re.MULTILINE
            ),
        ),
        main=re.compile(r"\bint\s+main\s*\("),
    ),
    toolchain=CppToolchain(
        vocabulary=re.compile(
            r"#\s*(?:define|undef)\s+(?:assert|NDEBUG|true|false)\b|\b__assert_fail\b|operator\s*==\s*\(\s*const\s+(?:std::)?\w+<"
        ),
        assertion_form=Assertions(
            (Form(r"^[^\S\n]*assert\s*\(\s*(?:issame\s*\(\s*|abs\s*\(\s*)?CALLED\s*\(", r"\s*(?:==|,|-)\s*"),),
            quotes='"',
        ),
        commands=("g++",),
        install="apt install g++",
        requirements=(
            Requirement("boost/any.hpp", "Boost", "apt install libboost-dev"),
            Requirement("openssl/md5.h", "OpenSSL's headers", "apt install libssl-dev"),
            Requirement("cannot find -lcrypto", "OpenSSL", "apt install libssl-dev"),
        ),
    ),
    codefuse_rules=_CodefuseRules(fence="cpp", ends_before=re.compile("int main")),
)
