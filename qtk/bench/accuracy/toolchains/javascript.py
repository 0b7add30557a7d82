"""JavaScript: Node runs solution and tests as one module; a failed console.assert is a failed test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.sandbox.job import MIB, Job, Outcome
from qtk.bench.accuracy.tasks import Task
from qtk.bench.accuracy.toolchains.base import Requirement, Toolchain, Verdict, new_sentinel, roomy

_SYNTAX_ERROR_EXIT, _ASSERTION_EXIT = 97, 96
# console.assert only prints and leaves the exit code 0. The runner counts, and says at the end that the end was reached.
_RUNNER = """
const fs = require('fs'), vm = require('vm');
const sentinel = process.argv[2], write = fs.writeSync, leave = process.reallyExit.bind(process);
const source = fs.readFileSync('task.js', 'utf8');
let program, failed = 0;
try {
  program = vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname'], {filename: 'task.js'});
} catch (error) {
  write(2, String(error.stack) + '\\n');
  leave(SYNTAX_ERROR);
}
const assert = console.assert;
console.assert = (value, ...rest) => { if (!value) failed += 1; assert(value, ...rest); };
const task = {exports: {}};
program.call(task.exports, task.exports, require, task, process.cwd() + '/task.js', process.cwd());
process.on('exit', (code) => { if (code === 0 && failed) leave(ASSERTION); if (code === 0) write(1, sentinel); });
""".replace("SYNTAX_ERROR", str(_SYNTAX_ERROR_EXIT)).replace("ASSERTION", str(_ASSERTION_EXIT))


class JavaScript(Toolchain):
    """One fresh Node process a program, with as few threads as it can do with."""

    language = "javascript"
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
        heap = self.limits.memory_bytes // MIB // 2
        node = shutil.which("node") or "node"
        flags = ("--single-threaded", "--v8-pool-size=0", f"--max-old-space-size={heap}")
        step = self._run(node, *flags, "runner.js", sentinel)
        return Job(files, (step,), sentinel, environment, roomy(self.limits, 1024 * MIB, 64))

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
