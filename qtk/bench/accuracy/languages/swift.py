"""Swift: one source file, compiled by swiftc, then run. The tests are MultiPL-E's."""

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


class SwiftToolchain(Toolchain):
    """The tests are statements at the top level of the file; built without optimization, which would drop `assert`."""

    @property
    def readable(self) -> tuple[str, ...]:
        return (str(_compiler().parents[1]),)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        return self.refuted(self.shared_job(solution, task, environment), solution, task, environment)

    def shared_job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f'{solution}\n{task.tests}\nprint("{sentinel}", terminator: "")\n'
        compile_ = self._compile(str(_compiler()), "-Onone", "main.swift", "-o", "main", seconds=90)
        steps = (compile_, self._run("./main"))
        return Job({"main.swift": source}, steps, sentinel, environment, roomy(self.limits, 3072 * MIB, 128))


def _compiler() -> Path:
    return Path(shutil.which("swiftc") or "swiftc").resolve()


SWIFT = Language(
    name="swift",
    title="Swift",
    assembly=Assembly(
        Grammar(
            blocks=Braces(re.compile(r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|"(?:\\.|[^"\\\n])*"', re.DOTALL)),
            definition=r"^func\s+NAME\s*[<(]",
            next_definition=re.compile(r"(?:func|struct|class|enum|let|var)\s+(\w+)"),
        )
    ),
    toolchain=SwiftToolchain(
        assertion_form=Assertions((Form(r"assert\(CALLED\(", r"\s*==\s*"),), quotes='"'),
        commands=("swiftc",),
        install="swift.org; Debian 12 has no package",
    ),
    bigcode_seconds=5.0,
)
