"""D: one source file, compiled by ldc2 with its unit tests, then run. The tests are MultiPL-E's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Job

_TESTS_MAIN = re.compile(r"void\s+main\s*\(\s*\)\s*\{\s*\}")
# By itself a program built with -unittest ends after its tests and does not come to main.
_END = 'extern(C) __gshared string[] rt_options = ["testmode=run-main"];\n'
_END += 'void main(){{ import core.stdc.stdio : fputs, stdout; fputs("{0}", stdout); }}\n'


class DToolchain(Toolchain):
    """Unit tests run before `main`, which is reached only when they pass."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Where the compiler lies, and the file in which Debian tells it where its library is."""
        return (str(Path(shutil.which("ldc2") or "ldc2").resolve().parents[1]), "/etc/ldc2.conf")

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        return self.refuted(self.shared_job(solution, task, environment), solution, task, environment)

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{solution}\n{_TESTS_MAIN.sub('', task.tests)}\n{_END.format(sentinel)}"
        steps = (self._compile("ldc2", "-unittest", "-of=main", "main.d"), self._run("./main"))
        return Job({"main.d": source}, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 64))


D = Language(
    name="d",
    title="D",
    assembly=Assembly(
        Grammar(
            blocks=Braces(
                re.compile(r'//[^\n]*|/\*.*?\*/|/\+.*?\+/|"(?:\\.|[^"\\])*"|`[^`]*`|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
            ),
            definition=r"^[A-Za-z_][\w!()\[\], .]*\sNAME\s*\(",
            next_definition=re.compile(r"(?:struct|class)\s+(\w+)|[A-Za-z_][\w!()\[\], .]*?\s(\w+)\s*\("),
        ),
        main=re.compile(r"^(?:void|int)\s+main\s*\(", re.MULTILINE),
    ),
    toolchain=DToolchain(
        assertion_form=Assertions(
            (
                Form(r"assert\(candidate\(", r"\s*==\s*"),
                Form(r"assert\(!(result(?:\[\d+\])?)\.isNull && \1\.get == (?P<expected>.*)\);$"),
            ),
            quotes='"',
        ),
        commands=("ldc2", "cc"),
        install="apt install ldc gcc",
    ),
)
