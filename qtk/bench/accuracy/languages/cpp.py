"""C++: g++ with the standard of the published numbers; the tests' main says at its end that it was reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from qtk.bench.accuracy.languages.assembly import Assembly, Frame
from qtk.bench.accuracy.languages.base import Requirement, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job

# Headers that codefuse-evaluation puts before C++ programs, where the prompt does not have the very same line.
_INCLUDES = (
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream"),
    "stdexcept",
)
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)\s*\{")
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
    """One translation unit: solution, then tests with `main`."""

    standard: str = "c++11"

    settings: ClassVar[frozenset[str]] = frozenset({"standard"})

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        tests = _MAIN.sub(lambda found: f"{found.group(0)} QtkEnd qtk_end;", task.tests, count=1)
        source = f"{solution}\n{_AT_END.format(sentinel)}{tests}"
        libraries = ("-lcrypto", "-lssl") if "openssl/" in source else ()
        steps = (
            self._compile("g++", f"-std={self.standard}", "-w", "-fmax-errors=5", "main.cpp", "-o", "main", *libraries),
            self._run("./main"),
        )
        return Job({"main.cpp": source}, steps, sentinel, environment, roomy(self.limits, 1024 * MIB, 64))


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
