"""JavaScript: Node runs solution and tests as one module; a failed console.assert is a failed test.

Starting Node costs more than most programs do. So programs that use the language alone, and nothing of Node's, first share
a sandbox and a Node process. There they run one after the other, each with a realm (global object, built-ins) of its own
and a short time. Only a silent pass counts there; every other program runs in a sandbox and a process of its own.

A program in company is given nothing but objects of its own realm: `require` there knows a small `assert` written for it.
No realm can make code from text, and the built-ins of the realm in which our own code runs are frozen. So a program that
found a way out would find nothing to change.

A program shares its process with the code that tells its end, in company or alone. What that code is called by has a name
that is drawn for each program and is gone from the disk before it starts. That is a best effort, not a proof.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.base import Company, Requirement, Toolchain, Verdict, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces, behind_parenthesis
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.options import Rules, harness_of
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job, ProgramOutcome

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


_SYNTAX_ERROR_EXIT, _ASSERTION_EXIT = 97, 96
# console.assert only prints and leaves the exit code 0. The runner counts, and says at the end that the end was reached.
_RUNNER = """
'use strict';
const fs = require('fs'), vm = require('vm');
const { sentinel, end } = JSON.parse(fs.readFileSync('words.json', 'utf8'));
fs.unlinkSync('words.json');
const write = fs.writeSync, leave = process.reallyExit.bind(process);
const source = fs.readFileSync('task.js', 'utf8') + `\n;${end}(console, require);`;
let program, failed = 0, ended = false;
try {
  // A parameter named arguments: by that word a program would come at the others.
  program = vm.compileFunction(
    source, ['exports', 'require', 'module', '__filename', '__dirname', end, 'arguments'], {filename: 'task.js'});
} catch (error) {
  write(2, String(error.stack) + '\\n');
  leave(SYNTAX_ERROR);
}
const print = console.assert, assert = (value, ...rest) => { if (!value) failed += 1; print(value, ...rest); };
Object.defineProperty(console, 'assert', {value: assert, writable: false, configurable: false});
for (const module of [require('assert'), require('assert').strict]) Object.freeze(module);
const task = {exports: {}}, theirs = console;
const atEnd = (console, given) => { ended = console === theirs && given === require; };
program.call(task.exports, task.exports, require, task, process.cwd() + '/task.js', process.cwd(), atEnd);
process.on('exit', (code) => { if (code === 0 && failed) leave(ASSERTION); if (code === 0 && ended) write(1, sentinel); });
""".replace("SYNTAX_ERROR", str(_SYNTAX_ERROR_EXIT)).replace("ASSERTION", str(_ASSERTION_EXIT))

_COMPANY_SECONDS = 2  # a program that needs longer runs again alone, under the suite's own clock
# Programs that mention any of these run in a process of their own: they reach beyond the language, or go on after its end.
_OF_NODE = re.compile(
    r"\b(?:process|global|globalThis|constructor|__proto__|prototype|Function|eval|import|Reflect|Proxy|async|await|Promise"
    r"|queueMicrotask|set(?:Timeout|Interval|Immediate)|Worker|Atomics|SharedArrayBuffer|WebAssembly|FinalizationRegistry)\b"
)
_REQUIRED = re.compile(r"\brequire\b(?:\s*\(\s*(['\"])((?:node:)?assert)\1\s*\))?")
# The small assert says yes only where Node's would: to all it does not know it says no, and the program runs again alone.
_COMPANY = """
'use strict';
const fs = require('fs'), vm = require('vm');
const { programs, milliseconds } = JSON.parse(fs.readFileSync('programs.json', 'utf8'));
fs.unlinkSync('programs.json');  // before any program runs: none learns another's word
const write = fs.writeSync, { createContext, compileFunction, runInContext } = vm, folder = process.cwd();
const realm = new vm.Script(`(() => {
  'use strict';
  const { isArray } = Array, { keys, getPrototypeOf } = Object, plain = getPrototypeOf({}), has = Object.hasOwn;
  let wrong = 0, ended = false, run;
  const count = () => { wrong += 1; };
  const check = (value) => { if (!value) wrong += 1; };
  const same = (a, b) => {
    if (a === b || (a !== a && b !== b)) return true;
    const objects = (typeof a === 'object' && a !== null) + (typeof b === 'object' && b !== null);
    if (objects === 0) return typeof a !== 'function' && typeof b !== 'function' && a == b;
    if (objects === 1 || isArray(a) !== isArray(b) || (isArray(a) && a.length !== b.length)) return false;
    if (!isArray(a) && (getPrototypeOf(a) !== plain || getPrototypeOf(b) !== plain)) return false;
    const names = keys(a);
    if (names.length !== keys(b).length) return false;
    for (let i = 0; i < names.length; i += 1) if (!has(b, names[i]) || !same(a[names[i]], b[names[i]])) return false;
    return true;
  };
  const assert = Object.freeze({
    deepEqual: (a, b) => check(same(a, b)), equal: (a, b) => check(a == b || (a !== a && b !== b)) });
  const console = { log: count, error: count, warn: count, info: count, debug: count, table: count, dir: count };
  Object.defineProperty(console, 'assert', { value: check, writable: false, configurable: false });
  globalThis.console = console;
  const require = (name) => { if (name === 'assert' || name === 'node:assert') return assert; throw new Error(name); };
  const end = (theirs, given) => { ended = theirs === console && given === require; };
  const exports = {}, task = { exports };
  return {
    take: (program, folder) => { run = () => program.call(exports, exports, require, task, folder + '/task.js', folder, end); },
    run: () => run(),
    passed: () => ended && wrong === 0,
  };
})()`);
function passes({ source, word, end }) {
  const context = createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
  const own = realm.runInContext(context);
  const names = ['exports', 'require', 'module', '__filename', '__dirname', end, 'arguments'];
  own.take(
    compileFunction(source + `\n;${end}(console, require);`, names, { parsingContext: context, filename: 'task.js' }), folder);
  context[word] = own.run;
  const start = `{ const run = globalThis['${word}']; delete globalThis['${word}']; run(); }`;
  runInContext(start, context, { timeout: milliseconds });
  return own.passed();
}
for (const name of runInContext('Object.getOwnPropertyNames(globalThis)', createContext())) {
  const value = typeof globalThis[name] === 'function' ? globalThis[name] : null;
  if (value && value.prototype) { Object.freeze(value.prototype); Object.freeze(value); }
}
for (const value of [[].values(), ''[Symbol.iterator](), (function* () {})(), async () => {}, async function* () {}])
  for (let at = Object.getPrototypeOf(value); at; at = Object.getPrototypeOf(at)) Object.freeze(at);
for (const value of [Reflect, JSON, Math, vm, fs]) Object.freeze(value);
for (let number = 0; number < programs.length; number += 1) {
  let passed = false;
  try { passed = passes(programs[number]); } catch { passed = false; }
  if (passed === true) write(1, programs[number].word + '\\n');
}
"""


class JavaScriptToolchain(Toolchain):
    """Node with as few threads as it can do with."""

    @property
    def readable(self) -> tuple[str, ...]:
        return tuple(str(path) for path in [*_module_folders(), *_node_home()])

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        words = json.dumps({"sentinel": sentinel, "end": f"end_{secrets.token_hex(8)}"})
        files = {"task.js": f"{solution}\n{task.tests}", "runner.js": _RUNNER, "words.json": words}
        folders = ":".join(str(path) for path in _module_folders())
        environment = {**environment, "NODE_PATH": folders, "NODE_NO_WARNINGS": "1"}
        step = self._run(*self._node(), "runner.js")
        return Job(files, (step,), sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

    def _node(self) -> tuple[str, ...]:
        heap = self.limits.memory_bytes // MIB // 2
        flags = ("--single-threaded", "--v8-pool-size=0", f"--max-old-space-size={heap}")
        return (shutil.which("node") or "node", *flags)

    def sociable(self, job: Job) -> bool:
        """Whether the program, tests and all, uses the language alone, besides the module assert."""
        source = job.files["task.js"]
        return not _OF_NODE.search(source) and all(required.group(2) for required in _REQUIRED.finditer(source))

    def together(self, jobs: Sequence[Job]) -> Job:
        content = {
            "programs": [
                {"source": job.files["task.js"], "word": job.sentinel, "end": f"end_{secrets.token_hex(8)}"}
                for job in jobs
            ],
            "milliseconds": 1000 * _COMPANY_SECONDS,
        }
        files = {"programs.json": json.dumps(content), "runner.js": _COMPANY}
        step = replace(
            self._run(*self._node(), "--disallow-code-generation-from-strings", "runner.js"),
            wall_seconds=self.seconds + _COMPANY_SECONDS * len(jobs),
            cpu_seconds=int(self.seconds) + _COMPANY_SECONDS * len(jobs),
        )
        return replace(jobs[0], files=files, steps=(step,))

    def verdict(self, outcome: ProgramOutcome, rules: Rules) -> Verdict:
        if outcome.ending == "exited" and outcome.exit_code == _SYNTAX_ERROR_EXIT:
            return "compile_error"
        verdict = super().verdict(outcome, rules)
        if harness_of(rules) == "codefuse" and verdict == "passed" and (outcome.stdout or outcome.stderr):
            return "failed"  # codefuse-evaluation takes any output for a failed console.assert
        return verdict


def _module_folders() -> list[Path]:
    """Where globally installed packages lie: NODE_PATH, and beside the node that is found first."""
    named = [Path(word) for word in os.environ.get("NODE_PATH", "").split(":") if word]
    node = shutil.which("node")
    beside = [Path(node).resolve().parents[1] / "lib" / "node_modules"] if node else []
    usual = [Path("/usr/local/lib/node_modules"), Path("/usr/lib/node_modules"), Path("/usr/share/nodejs")]
    return list(dict.fromkeys(path for path in (*named, *beside, *usual) if path.is_dir()))


def _node_home() -> list[Path]:
    node = shutil.which("node")
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
        commands=("node",),
        install="apt install nodejs, or nodejs.org",
        requirements=(Requirement("Cannot find module 'js-md5'", "js-md5", "npm install -g js-md5"),),
        company=Company(16),
    ),
    codefuse_rules=CodefuseRules(fence="js", ends_behind=re.compile(r"\};?")),
    bigcode_seconds=5.0,
)
