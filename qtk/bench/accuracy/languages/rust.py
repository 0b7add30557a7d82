"""Rust: one source file, compiled by rustc, then run. The tests are MultiPL-E's."""

from __future__ import annotations

import re
import subprocess

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job

_TESTS_MAIN = re.compile(r"\bfn\s+main\s*\(\s*\)")


class RustToolchain(Toolchain):
    """The tests' `main` is renamed and called by one of our own, which then says that it came back."""

    @property
    def readable(self) -> tuple[str, ...]:
        return (_root(),)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        return self.refuted(self.shared_job(solution, task, environment), solution, task, environment)

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        tests = _TESTS_MAIN.sub("fn qtk_tests()", task.tests, count=1)
        source = f'{solution}\n{tests}\nfn main() {{ qtk_tests(); print!("{sentinel}"); }}\n'
        compiler = f"{_root()}/bin/rustc"
        steps = (self._compile(compiler, "-A", "warnings", "-o", "main", "main.rs"), self._run("./main"))
        return Job({"main.rs": source}, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 64))


def _root() -> str:
    """Where rustc and its libraries lie; rustup's own rustc is only a pointer to them."""
    answer = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True)
    if answer.returncode:
        raise LanguageUnavailable(f"rustc does not run: {answer.stderr.strip()[-300:]}")
    return answer.stdout.strip()


RUST = Language(
    name="rust",
    title="Rust",
    tags=("rs",),
    assembly=Assembly(
        Grammar(
            # A quote that no second one closes after one character begins a lifetime.
            blocks=Braces(
                re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\(?:u\{\w*\}|x\w\w|.)|[^\'\\\n])\'', re.DOTALL)
            ),
            definition=r"^(?:pub\s+)?fn\s+NAME\s*[<(]",
            next_definition=re.compile(r"(?:pub\s+)?(?:fn|struct|enum|const|static|trait)\s+(\w+)"),
        ),
        main=re.compile(r"^(?:pub\s+)?fn\s+main\s*\(", re.MULTILINE),
    ),
    toolchain=RustToolchain(
        vocabulary=re.compile(r"\bmacro_rules!\s*assert|\bno_mangle\b"),
        reaching=re.compile(
            r"\b(?:macro_rules|macro_export|macro_use|unsafe|extern|mod|static|impl|trait|struct|enum|union|include\w*|env|option_env|std|core|alloc|asm|global_asm|link\w*|no_mangle"
            r"|panic\w*|process|print\w*|eprint\w*|catch_unwind|type|crate|super|proc_macro|main|use|const|fn\s+[A-Z]\w*)\b|#\s*!?\["
        ),
        assertion_form=Assertions((Form(r"assert_eq!\(candidate\(", r"\s*,\s*"),), quotes='"'),
        commands=("rustc", "cc"),
        install="apt install rustc gcc, or rustup",
    ),
    codefuse_rules=CodefuseRules(fence="rust", ends_behind=re.compile(r"\};?")),
    bigcode_seconds=5.0,
)
