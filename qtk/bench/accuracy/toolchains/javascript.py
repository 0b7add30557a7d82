"""JavaScript: Node runs solution and tests as one module; a failed console.assert is a failed test.

Starting Node costs more than most programs do. So programs that use the language alone, and nothing of Node's, share a
sandbox and a Node process at first, one after the other, each with a realm (global object, built-ins) of its own and a
short time. Only a silent pass counts there; every other program runs in a sandbox and a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.sandbox.job import MIB, Job, Outcome
from qtk.bench.accuracy.tasks import Task
from qtk.bench.accuracy.toolchains.base import Company, Requirement, Toolchain, Verdict, new_sentinel, roomy

_SYNTAX_ERROR_EXIT, _ASSERTION_EXIT = 97, 96
# console.assert only prints and leaves the exit code 0. The runner counts, and says at the end that the end was reached.
_RUNNER = """
const fs = require('fs'), vm = require('vm');
const sentinel = process.argv[2], write = fs.writeSync, leave = process.reallyExit.bind(process);
const source = fs.readFileSync('task.js', 'utf8') + '\\n;END();';
let program, failed = 0, ended = false;
try {
  program = vm.compileFunction(
    source, ['exports', 'require', 'module', '__filename', '__dirname', 'END'], {filename: 'task.js'});
} catch (error) {
  write(2, String(error.stack) + '\\n');
  leave(SYNTAX_ERROR);
}
const assert = console.assert;
console.assert = (value, ...rest) => { if (!value) failed += 1; assert(value, ...rest); };
const task = {exports: {}};
program.call(task.exports, task.exports, require, task, process.cwd() + '/task.js', process.cwd(), () => { ended = true; });
process.on('exit', (code) => { if (code === 0 && failed) leave(ASSERTION); if (code === 0 && ended) write(1, sentinel); });
""".replace("SYNTAX_ERROR", str(_SYNTAX_ERROR_EXIT)).replace("ASSERTION", str(_ASSERTION_EXIT))

_COMPANY_SECONDS = 2  # a program that needs longer runs again alone, under the suite's own clock
# What reaches beyond the language, or what goes on when the program is over: whoever names one of these runs alone.
_OF_NODE = re.compile(
    r"\b(?:process|global|globalThis|constructor|__proto__|prototype|Function|eval|import|Reflect|Proxy|async|await|Promise"
    r"|queueMicrotask|set(?:Timeout|Interval|Immediate)|Worker|Atomics|SharedArrayBuffer|WebAssembly|FinalizationRegistry)\b"
)
_REQUIRED = re.compile(r"\brequire\b(?:\s*\(\s*(['\"])((?:node:)?assert|js-md5)\1\s*\))?")
_COMPANY = """
const fs = require('fs'), vm = require('vm');
const { programs, milliseconds } = JSON.parse(fs.readFileSync('programs.json', 'utf8'));
fs.unlinkSync('programs.json');  // before any program runs: none learns another's word
const names = ['exports', 'require', 'module', '__filename', '__dirname', 'END'], folder = process.cwd();
const realm = new vm.Script(`(() => {
  let wrong = 0;
  const count = () => { wrong += 1; };
  const assert = (value) => { if (!value) wrong += 1; };
  globalThis.console = { assert, log: count, error: count, warn: count, info: count, debug: count, table: count, dir: count };
  return { wrong: () => wrong, module: () => ({ exports: {} }) };
})()`);
function passes({ source, word }) {
  const context = vm.createContext(Object.create(null)), own = realm.runInContext(context), task = own.module();
  const program = vm.compileFunction(source + '\\n;END();', names, { parsingContext: context, filename: 'task.js' });
  let ended = false;
  const end = () => { ended = true; };
  context[word] = () => program.call(task.exports, task.exports, require, task, folder + '/task.js', folder, end);
  vm.runInContext(`{ const run = globalThis['${word}']; delete globalThis['${word}']; run(); }`, context, { timeout: milliseconds });
  return ended && own.wrong() === 0;
}
for (const program of programs) {
  let passed = false;
  try { passed = passes(program); } catch { passed = false; }
  if (passed) fs.writeSync(1, program.word + '\\n');
}
"""


class JavaScript(Toolchain):
    """Node with as few threads as it can do with."""

    language = "javascript"
    company = Company(16)
    commands = ("node",)
    install = "apt install nodejs, or nodejs.org"
    requirements = (Requirement("Cannot find module 'js-md5'", "js-md5", "npm install -g js-md5"),)

    @property
    def readable(self) -> tuple[str, ...]:
        return tuple(str(path) for path in [*_module_folders(), *_node_home()])

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        files = {"task.js": f"{solution}\n{task.tests}", "runner.js": _RUNNER}
        folders = ":".join(str(path) for path in _module_folders())
        environment = {**environment, "NODE_PATH": folders, "NODE_NO_WARNINGS": "1"}
        sentinel = new_sentinel()
        step = self._run(*self._node(), "runner.js", sentinel)
        return Job(files, (step,), sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

    def _node(self) -> tuple[str, ...]:
        heap = self.limits.memory_bytes // MIB // 2
        flags = ("--single-threaded", "--v8-pool-size=0", f"--max-old-space-size={heap}")
        return (shutil.which("node") or "node", *flags)

    def sociable(self, job: Job) -> bool:
        """Whether the program, tests and all, uses the language alone, besides the modules assert and js-md5."""
        source = job.files["task.js"]
        return not _OF_NODE.search(source) and all(found.group(2) for found in _REQUIRED.finditer(source))

    def together(self, jobs: Sequence[Job]) -> Job:
        content = {
            "programs": [{"source": job.files["task.js"], "word": job.sentinel} for job in jobs],
            "milliseconds": 1000 * _COMPANY_SECONDS,
        }
        files = {"programs.json": json.dumps(content), "runner.js": _COMPANY}
        step = replace(
            self._run(*self._node(), "runner.js"),
            wall_seconds=self.seconds + _COMPANY_SECONDS * len(jobs),
            cpu_seconds=int(self.seconds) + _COMPANY_SECONDS * len(jobs),
        )
        return replace(jobs[0], files=files, steps=(step,))

    def verdict(self, outcome: Outcome, rules: Rules) -> Verdict:
        if outcome.ending == "exited" and outcome.exit_code == _SYNTAX_ERROR_EXIT:
            return "compile_error"
        verdict = super().verdict(outcome, rules)
        if rules == "codefuse" and verdict == "passed" and (outcome.stdout or outcome.stderr):
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
