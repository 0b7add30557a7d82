"""JavaScript: Node runs solution and tests, each apart from the other; a failed console.assert is a failed test.

Starting Node costs more than most programs do. So programs that use the language alone, and nothing of Node's, first share
a sandbox and a Node process. There they run one after the other, each with a short time and two realms (global object,
built-ins), one for the answer and one for its tests. Only a silent pass counts there; every other program runs alone, and then
the answer and its tests are two processes. Either way only text crosses between the two (`javascript_runners`).

No realm of an answer can make code from text, and the built-ins of the realm in which our own code runs are frozen. So a
program in company that found a way out of its realm would find nothing to change.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Company, Requirement, Toolchain, Verdict, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces, behind_parenthesis
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.javascript_runners import (
    ANSWER_RUNNER,
    COMPANY_RUNNER,
    SYNTAX_ERROR_EXIT,
    tests_runner,
)
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.options import Rules, harness_of
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Beside, Job, ProgramOutcome

_ARROW = re.compile(r"\s*(?:\w+\s*)?=>\s*")
_FUNCTION_WORDS = re.compile(r"\s*(?:async\s+)?(?:function\s*\*?\s*\w*\s*)?")


class _Blocks(Braces):
    """The body of an arrow function may be an expression without braces."""

    def opening(self, plain: str, definition: re.Match[str]) -> int | None:
        """Where the body begins: at its brace, or at an arrow function's expression."""
        position = definition.end()
        if plain[position - 1] != "(":
            words = _FUNCTION_WORDS.match(plain, position)
            position = words.end() if words else position
            if plain[position : position + 1] == "(":
                position += 1
        if plain[position - 1] == "(":
            position = behind_parenthesis(plain, position) or len(plain)
        if arrow := _ARROW.match(plain, position):
            return arrow.end() if arrow.end() < len(plain) else None
        opening = plain.find("{", position)
        return opening if opening >= 0 else None

    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        plain = self.blanked(code)
        opening = self.opening(plain, definition)
        if opening is not None and plain[opening] != "{":
            return _expression_end(plain, opening)
        return super().definition_end(code, definition)


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


_EXPORT_LIST = re.compile(r"^export\s*(?:\{[^}]*\}|default\s+\w+)\s*;?[^\S\n]*$", re.MULTILINE)
_EXPORT = re.compile(r"^export\s+(?:default\s+)?(?=(?:const|let|var|async|function|class|\w+\s*=)\b)", re.MULTILINE)


class _Assembly(Assembly):
    """The runner's module is not one that can export."""

    def cleaned(self, code: str) -> str:
        return _EXPORT.sub("", _EXPORT_LIST.sub("", code))


_COMPANY_SECONDS = 2  # a program that needs longer runs again alone, under the suite's own clock
# Programs that mention any of these run in a process of their own: they reach beyond the language, or go on after its end.
_OF_NODE = re.compile(
    r"\b(?:process|global|globalThis|constructor|__proto__|prototype|Function|eval|import|Reflect|Proxy|async|await|Promise"
    r"|queueMicrotask|set(?:Timeout|Interval|Immediate)|Worker|Atomics|SharedArrayBuffer|WebAssembly|FinalizationRegistry"
    r"|require)\b"
)
_REQUIRED = re.compile(r"\brequire\s*\(\s*(['\"])(?:node:)?assert\1\s*\)")


class JavaScriptToolchain(Toolchain):
    """Node with as few threads as it can do with."""

    @property
    def readable(self) -> tuple[str, ...]:
        return tuple(str(path) for path in [*_module_folders(), *_node_home()])

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel, helpers = new_sentinel(), _Used.of(task).text
        names = [task.entry, *_called(task, solution)]
        own = _own_helpers(task, solution)
        parts = {
            "source": solution,
            "whole": task.tests,
            "tests": f"{helpers}\n{task.tests}",
            "names": [*names, *own],
            "theirs": len(names),
            "sentinel": sentinel,
        }
        words = json.dumps({"end": f"end_{secrets.token_hex(8)}", "names": parts["names"]})
        files = {"task.js": solution, "runner.js": ANSWER_RUNNER, "words.json": words}
        folders = ":".join(str(path) for path in _module_folders())
        environment = {**environment, "NODE_PATH": folders, "NODE_NO_WARNINGS": "1"}
        text = json.dumps(parts)
        beside = Beside((*self._node(), "-"), tests_runner(text), parts={"json": text})
        step = replace(self._run(*self._node(), "runner.js"), beside=beside)
        return Job(files, (step,), sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

    def _node(self) -> tuple[str, ...]:
        heap = self.limits.memory_bytes // MIB // 2
        flags = ("--single-threaded", "--v8-pool-size=0", f"--max-old-space-size={heap}")
        return (_node(os.environ.get("PATH", "")) or "node", *flags)

    def sociable(self, job: Job) -> bool:
        """Whether the program uses the language alone, and its tests besides that at most the module assert."""
        tests = _REQUIRED.sub("", _parts(job)["tests"])
        return not _OF_NODE.search(job.files["task.js"]) and not _OF_NODE.search(tests)

    def together(self, jobs: Sequence[Job]) -> Job:
        content = {
            "programs": [{**_parts(job), "word": job.sentinel, "end": f"end_{secrets.token_hex(8)}"} for job in jobs],
            "milliseconds": 1000 * _COMPANY_SECONDS,
        }
        files = {"programs.json": json.dumps(content), "runner.js": COMPANY_RUNNER}
        step = replace(
            self._run(*self._node(), "--disallow-code-generation-from-strings", "runner.js"),
            wall_seconds=self.seconds + _COMPANY_SECONDS * len(jobs),
            cpu_seconds=int(self.seconds) + _COMPANY_SECONDS * len(jobs),
        )
        return replace(jobs[0], files=files, steps=(step,))

    def verdict(self, outcome: ProgramOutcome, rules: Rules) -> Verdict:
        if outcome.ending == "exited" and outcome.exit_code == SYNTAX_ERROR_EXIT:
            return "compile_error"
        verdict = super().verdict(outcome, rules)
        if harness_of(rules) == "codefuse" and verdict == "passed" and (outcome.stdout or outcome.stderr):
            return "failed"  # codefuse-evaluation takes any output for a failed console.assert
        return verdict


# What tests mean by these is Node's, whatever an answer calls so.
_GLOBALS = frozenset(
    (
        *(
            "console",
            "require",
            "module",
            "exports",
            "process",
            "global",
            "globalThis",
            "Buffer",
            "assert",
            "arguments",
        ),
        *(
            "Object",
            "Array",
            "String",
            "Number",
            "Boolean",
            "Symbol",
            "BigInt",
            "Math",
            "JSON",
            "Date",
            "RegExp",
            "Map",
        ),
        *(
            "Set",
            "WeakMap",
            "WeakSet",
            "Promise",
            "Proxy",
            "Reflect",
            "Iterator",
            "Intl",
            "Function",
            "eval",
            "undefined",
        ),
        *(
            "Error",
            "TypeError",
            "RangeError",
            "SyntaxError",
            "ReferenceError",
            "EvalError",
            "URIError",
            "NaN",
            "Infinity",
        ),
        *(
            "parseInt",
            "parseFloat",
            "isNaN",
            "isFinite",
            "structuredClone",
            "setTimeout",
            "setInterval",
            "setImmediate",
        ),
    )
)


def _parts(job: Job) -> dict[str, Any]:
    """What the program of a job's tests was made of."""
    beside = job.steps[0].beside
    assert beside is not None
    return json.loads(beside.parts["json"])


def _prompt_helpers(task: Task) -> str:
    """What the prompt defines before the function that was asked for: the tests may use it, as the prompt has it."""
    found = JAVASCRIPT.grammar.found(task.entry, task.prompt)
    return task.prompt[: found[-1].start()] if found else ""


def _own_helpers(task: Task, solution: str) -> list[str]:
    """Those of the prompt's helpers that the tests use and the solution has as well: the tests have to pass with either."""
    used = _Used.of(task)
    there = {defined.name for defined in JAVASCRIPT.grammar.definitions(solution)} if used.helpers else set()
    return [name for name in used.helpers if name in there]


def _called(task: Task, solution: str) -> list[str]:
    """Names at the top level of a solution that its tests mention and that neither they nor the prompt's helpers define."""
    wanted = _Used.of(task).wanted
    return [
        name for name in {defined.name: None for defined in JAVASCRIPT.grammar.definitions(solution)} if name in wanted
    ]


@dataclass(frozen=True)
class _Used:
    """What the tests of a task use. text: what the prompt defines before the function that was asked for. helpers: what of that
    they mention. wanted: words that only an answer could define."""

    text: str
    helpers: tuple[str, ...]
    wanted: frozenset[str]

    @staticmethod
    @functools.lru_cache(maxsize=4096)  # a task is asked for with its reference, and then with each answer
    def of(task: Task) -> _Used:
        grammar, words = JAVASCRIPT.grammar, set(re.findall(r"[A-Za-z_$][\w$]*", task.tests))
        text = _prompt_helpers(task)
        helpers = [defined.name for defined in grammar.definitions(text)]
        theirs = {defined.name for defined in grammar.definitions(task.tests)}
        mentioned = tuple(name for name in dict.fromkeys(helpers) if name in words)
        return _Used(text, mentioned, frozenset(words - theirs - set(helpers) - _GLOBALS - {task.entry}))


@functools.lru_cache(maxsize=8)
def _node(path: str) -> str | None:
    """The node that is found first on a search path."""
    return shutil.which("node", path=path)


def _module_folders() -> tuple[Path, ...]:
    """Where globally installed packages lie: NODE_PATH, and beside the node that is found first."""
    return _folders(os.environ.get("NODE_PATH", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)  # every job asks for them
def _folders(named: str, path: str) -> tuple[Path, ...]:
    node = _node(path)
    beside = [Path(node).resolve().parents[1] / "lib" / "node_modules"] if node else []
    usual = [Path("/usr/local/lib/node_modules"), Path("/usr/lib/node_modules"), Path("/usr/share/nodejs")]
    wanted = (*(Path(word) for word in named.split(":") if word), *beside, *usual)
    return tuple(dict.fromkeys(path for path in wanted if path.is_dir()))


def _node_home() -> list[Path]:
    node = _node(os.environ.get("PATH", ""))
    return [Path(node).resolve().parents[1]] if node else []


JAVASCRIPT = Language(
    name="javascript",
    title="JavaScript",
    short=("js",),
    tags=("js", "node"),
    assembly=_Assembly(
        Grammar(
            blocks=_Blocks(
                re.compile(
                    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`(?:\\.|[^`\\])*`'
                    r"|(?<=[(,=+:\[!&|?{};\n])\s*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/",
                    re.DOTALL,
                ),
                search_blanked=True,
            ),
            definition=r"^(?:export\s+(?:default\s+)?)?(?:(?:(?:const|let|var)\s+)?NAME\s*=(?![=>])"
            r"|(?:async\s+)?function\s*\*?\s*NAME\s*\()",
            next_definition=re.compile(r"(?:async\s+)?(?:function|const|let|var|class)\s+(\w+)"),
            code_start=re.compile(r"^(?:const |let |var |function |async function |class |import )", re.MULTILINE),
        )
    ),
    toolchain=JavaScriptToolchain(
        vocabulary=re.compile(
            r"\bconsole\s*\.\s*assert\s*=|\bJSON\s*\.\s*\w+\s*=|\b_load\b|\bvar\s+(?:console|assert)\b"
        ),
        assertion_form=Assertions(
            (
                Form(
                    r"console\.assert\(\s*(?:JSON\.stringify\(|Math\.abs\()?\s*CALLED\(",
                    r"\s*\)?\s*(?:={2,3}|-)\s*(?:JSON\.stringify\()?",
                ),
                Form(r"assert\.deepEqual\(CALLED\(", r"\s*,\s*"),
            ),
            quotes="\"'`",
        ),
        commands=("node",),
        install="apt install nodejs, or nodejs.org",
        requirements=(Requirement("Cannot find module 'js-md5'", "js-md5", "npm install -g js-md5"),),
        company=Company(32),
    ),
    codefuse_rules=CodefuseRules(fence="js", ends_behind=re.compile(r"\};?")),
    bigcode_seconds=5.0,
)
