"""C++: g++ with the standard of the published numbers. The tests are compiled before the answer, and call it by plain types."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import ClassVar

from qtk.bench.accuracy.languages.assembly import Assembly, Frame
from qtk.bench.accuracy.languages.assertions import Assertions
from qtk.bench.accuracy.languages.base import Requirement, Toolchain, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.languages.seal import Seal
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job

# Headers that codefuse-evaluation puts before C++ programs, where the prompt does not have the very same line.
_INCLUDES = (
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream"),
    "stdexcept",
)
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)\s*\{")
_DIRECTIVE = re.compile(r"^[^\S\n]*#[^\n]*\n?", re.MULTILINE)
# The tests come before the answer, in a namespace of a name that is drawn for each program: what the answer defines, macros
# and operators among it, is not there yet where the tests are compiled. They call functions of the prompt's types, which call
# the answer's. A failed assertion ends the process by an instruction, and a counted one jumps back: neither calls a function
# that a program could bring with it.
_BEFORE = """{directives}{head}
#include <cstdio>
namespace {name} {{
{prototypes}
{helpers}
static void* back[5];
static bool counting = false;
static void missed(int line) {{
    if (counting) __builtin_longjmp(back, 1);
    std::fprintf(stderr, "Assertion in line %d of the tests failed.\\n", line);
    __builtin_trap();
}}
#undef assert
#define assert(...) (static_cast<bool>(__VA_ARGS__) ? void() : {name}::missed(__LINE__))
{tests}
namespace wrong {{
{wrong}
}}
static bool meets_the_wrong() {{
    if (__builtin_setjmp(back)) return false;
    counting = true;
    wrong::tests();
    return true;
}}
#undef assert
}}
static const char* const {name}_words[] = {{{words}}};
int main() {{
    {name}::tests();
    const bool forged = {name}::meets_the_wrong();
    std::fflush(stdout);
    std::fputs({name}_words[forged ? {bad} : {good}], stdout);
    return 0;
}}
#include <assert.h>
"""
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
    """One translation unit: the tests, then the solution."""

    standard: str = "c++11"

    settings: ClassVar[frozenset[str]] = frozenset({"standard"})

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        seal = Seal.drawn()
        source = self._apart(solution, task, seal) or _together(solution, task, seal)
        libraries = ("-lcrypto", "-lssl") if "openssl/" in source else ()
        steps = (
            self._compile("g++", f"-std={self.standard}", "-w", "-fmax-errors=5", "main.cpp", "-o", "main", *libraries),
            self._run("./main"),
        )
        limits = roomy(self.limits, 1024 * MIB, 64)
        return Job({"main.cpp": source}, steps, seal.sentinel, environment, limits, seal.decoys)

    def _apart(self, solution: str, task: Task, seal: Seal) -> str:
        """The program with its tests before the solution; empty where the prompt's functions cannot be called like that."""
        grammar, prompt = CPP.grammar, task.prompt
        found = grammar.found(task.entry, prompt)
        main = _MAIN.search(task.tests)
        if not found or main is None:
            return ""
        entry = found[-1]
        definitions = [item for item in grammar.definitions(prompt) if item.start < entry.start()]
        first = min(
            [item.start for item in definitions if "(" in prompt[item.start : item.end].split("{")[0]],
            default=entry.start(),
        )
        head, helpers = prompt[: min(first, entry.start())], prompt[min(first, entry.start()) : entry.start()]
        signature = _Signature.of(prompt[entry.start() : entry.end()], task.entry)
        if signature is None:
            return ""
        name = f"qtk_{secrets.token_hex(6)}"
        includes = _absent_includes(head) if "using namespace std" in head else ""
        types = [block.group(0) for block in _TYPES.finditer(head)]
        for block in types:
            solution = solution.replace(block, "", 1)
        flip = next(self.assertion_form.flips(task.tests), None) if self.assertion_form else None
        wrong = (
            flip.instead(task.tests) if flip else f"{task.tests[: main.end()]}assert(false);{task.tests[main.end() :]}"
        )
        program = _BEFORE.format(
            directives="".join(_DIRECTIVE.findall(task.tests)),
            head=includes + head,
            name=name,
            prototypes=f"{signature.result} {task.entry}({signature.parameters});",
            helpers=helpers,
            tests=_as_function(task.tests),
            wrong=_as_function(wrong),
            words=seal.listed(),
            good=seal.good,
            bad=seal.bad,
        )
        call = f"return ::{task.entry}({', '.join(signature.names)});"
        return f"{program}{solution}\nnamespace {name} {{\n{signature.result} {task.entry}({signature.parameters}) {{ {call} }}\n}}\n"


_TYPES = re.compile(r"^(?:union|struct|class)\s+\w+[^{;]*\{.*?^\};[^\n]*\n", re.MULTILINE | re.DOTALL)


def _as_function(tests: str) -> str:
    """The tests without directives, which are at the top of the program, and with `main` under another name."""
    return _MAIN.sub("static int tests() {", _DIRECTIVE.sub("", tests), count=1)


def _together(solution: str, task: Task, seal: Seal) -> str:
    """The program with its tests behind the solution, whose definitions they then see."""
    tests = _MAIN.sub(lambda found: f"{found.group(0)} QtkEnd qtk_end;", task.tests, count=1)
    return f"{solution}\n{_AT_END.format(seal.sentinel)}{tests}"


@dataclass(frozen=True)
class _Signature:
    """A function's header: the type of its result, its parameters as they are written, and their names."""

    result: str
    parameters: str
    names: tuple[str, ...]

    @staticmethod
    def of(header: str, entry: str) -> _Signature | None:
        found = re.search(rf"^(.*?[\s&*>]){re.escape(entry)}\s*\((.*)\)\s*(?:const\s*)?\{{$", header.strip(), re.DOTALL)
        if found is None:
            return None
        parameters = _divided(found.group(2))
        names = [re.search(r"(\w+)\s*(?:=.*)?$", part.strip(), re.DOTALL) for part in parameters]
        if not all(names):
            return None
        return _Signature(found.group(1).strip(), found.group(2), tuple(name.group(1) for name in names if name))


def _divided(parameters: str) -> list[str]:
    """The parameters one by one: a comma between angle brackets divides nothing."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "<({") - (character in ">)}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


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
        assertion_form=Assertions(
            re.compile(
                r"^[^\S\n]*assert[^\S\n]*\((?:[^\n]*==(?P<expected>[^\n]*)|[^\n]*\)[^\S\n]*,[^\S\n]*(?P<list>\{[^\n]*\}))\)[^\S\n]*;",
                re.MULTILINE,
            ),
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
