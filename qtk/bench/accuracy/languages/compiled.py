"""Rust, D and Swift: one source file, compiled, then run. Their tests are MultiPL-E's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import MIB, Job

_RUST_MAIN = re.compile(r"\bfn\s+main\s*\(\s*\)")
_D_MAIN = re.compile(r"void\s+main\s*\(\s*\)\s*\{\s*\}")
# By itself a program built with -unittest ends after its tests and does not come to main.
_D_END = 'extern(C) __gshared string[] rt_options = ["testmode=run-main"];\n'
_D_END += 'void main(){{ import core.stdc.stdio : fputs, stdout; fputs("{0}", stdout); }}\n'


class Rust(Toolchain):
    """The tests' `main` is renamed and called by one of our own, which then says that it came back."""

    language = "rust"
    commands = ("rustc", "cc")
    install = "apt install rustc gcc, or rustup"

    @property
    def readable(self) -> tuple[str, ...]:
        return (_rust_root(),)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        tests = _RUST_MAIN.sub("fn qtk_tests()", task.tests, count=1)
        source = f'{solution}\n{tests}\nfn main() {{ qtk_tests(); print!("{sentinel}"); }}\n'
        compiler = f"{_rust_root()}/bin/rustc"
        steps = (self._compile(compiler, "-A", "warnings", "-o", "main", "main.rs"), self._run("./main"))
        return Job({"main.rs": source}, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 64))


class D(Toolchain):
    """Unit tests run before `main`, which is reached only when they pass."""

    language = "d"
    commands = ("ldc2", "cc")
    install = "apt install ldc gcc"

    @property
    def readable(self) -> tuple[str, ...]:
        """Where the compiler lies, and the file in which Debian tells it where its library is."""
        return (str(Path(shutil.which("ldc2") or "ldc2").resolve().parents[1]), "/etc/ldc2.conf")

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{solution}\n{_D_MAIN.sub('', task.tests)}\n{_D_END.format(sentinel)}"
        steps = (self._compile("ldc2", "-unittest", "-of=main", "main.d"), self._run("./main"))
        return Job({"main.d": source}, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 64))


class Swift(Toolchain):
    """The tests are statements at the top level of the file; built without optimization, which would drop `assert`."""

    language = "swift"
    commands = ("swiftc",)
    install = "swift.org; Debian 12 has no package"

    @property
    def readable(self) -> tuple[str, ...]:
        return (str(Path(shutil.which("swiftc") or "swiftc").resolve().parents[1]),)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f'{solution}\n{task.tests}\nprint("{sentinel}", terminator: "")\n'
        compiler = str(Path(shutil.which("swiftc") or "swiftc").resolve())
        steps = (self._compile(compiler, "-Onone", "main.swift", "-o", "main", seconds=90), self._run("./main"))
        return Job({"main.swift": source}, steps, sentinel, environment, roomy(self.limits, 3072 * MIB, 128))


def _rust_root() -> str:
    """Where rustc and its libraries lie; rustup's own rustc is only a pointer to them."""
    answer = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True)
    if answer.returncode:
        raise LanguageUnavailable(f"rustc does not run: {answer.stderr.strip()[-300:]}")
    return answer.stdout.strip()
