"""Languages that are run from their source: Lua, PHP, R, Racket, Julia, Perl, Ruby, Bash.

Each says how its tests are made to print the sentinel at their end, and what they need besides the interpreter.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from qtk.bench.accuracy.languages.base import Requirement, Toolchain, Verdict, new_sentinel, roomy
from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import MIB, Job, Outcome


class Interpreted(Toolchain):
    """Solution, then tests, in one file; `ending` is what prints the sentinel, `flags` stand before the file's name."""

    file: ClassVar[str] = ""
    flags: ClassVar[tuple[str, ...]] = ()
    ending: ClassVar[str] = ""

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{solution}\n{self.tests(task.tests)}\n{self.ending.format(sentinel)}"
        command = (_location(self.commands[0]), *self.flags, self.file)
        return Job(
            {self.file: source}, (self._run(*command),), sentinel, environment, roomy(self.limits, 1024 * MIB, 64)
        )

    def tests(self, tests: str) -> str:
        """The tests without what would end the process before the sentinel."""
        return tests

    @property
    def readable(self) -> tuple[str, ...]:
        """The interpreter's own tree where it is not one of the system's."""
        return tuple(str(Path(_location(command)).parents[1]) for command in self.commands)


class Lua(Interpreted):
    """LuaUnit ends the process with the number of failures; here a failure does, and success goes on to the sentinel."""

    language = "lua"
    commands = ("lua",)
    install = "apt install lua5.4"
    file = "main.lua"
    ending = 'io.stdout:write("{0}")'
    requirements = (Requirement("module 'luaunit' not found", "LuaUnit", "apt install lua-unit"),)

    def tests(self, tests: str) -> str:
        return tests.replace("os.exit(lu.LuaUnit.run())", "if lu.LuaUnit.run() ~= 0 then os.exit(1) end")


class Php(Interpreted):
    """A failed test throws, which ends the process with 255."""

    language = "php"
    commands = ("php",)
    install = "apt install php-cli"
    file = "main.php"
    ending = 'echo "{0}";'


class R(Interpreted):
    """`stopifnot` ends Rscript with 1."""

    language = "r"
    commands = ("Rscript",)
    install = "apt install r-base-core"
    file = "main.r"
    ending = 'cat("{0}")'


class Racket(Interpreted):
    """A failed check only prints to standard error and leaves the exit code 0: whatever is printed there is a failure."""

    language = "racket"
    commands = ("racket",)
    install = "apt install racket"
    file = "main.rkt"
    ending = '(display "{0}")'
    requirements = (Requirement('collection: "rackunit"', "rackunit", "apt install racket, not the minimal one"),)

    def verdict(self, outcome: Outcome, rules: Rules) -> Verdict:
        verdict = super().verdict(outcome, rules)
        return "failed" if verdict == "passed" and outcome.stderr else verdict


class Julia(Interpreted):
    """A failed test set throws at its end."""

    language = "julia"
    commands = ("julia",)
    install = "julialang.org; Debian 12 has no package"
    file = "main.jl"
    flags = ("--startup-file=no", "--threads=1", "--compile=min", "-O0")
    ending = 'print("{0}")'


class Perl(Interpreted):
    """A failed comparison calls exit 1."""

    language = "perl"
    commands = ("perl",)
    install = "apt install perl"
    file = "main.pl"
    ending = 'print "{0}";'
    requirements = (Requirement("Can't locate Test/Deep.pm", "Test::Deep", "apt install libtest-deep-perl"),)


class Ruby(Interpreted):
    """test-unit would run when the process ends; here it runs in its place, and success goes on to the sentinel."""

    language = "ruby"
    commands = ("ruby",)
    install = "apt install ruby"
    file = "main.rb"
    ending = (
        "Test::Unit::AutoRunner.need_auto_run = false\n"
        "exit!(1) unless Test::Unit::AutoRunner.run\n"
        "$stdout.write('{0}')\n"
    )
    requirements = (Requirement("test/unit", "test-unit", "apt install ruby-test-unit"),)


class Bash(Interpreted):
    """A failed comparison ends the process, because the tests say `set -e`."""

    language = "bash"
    commands = ("bash",)
    install = "apt install bash"
    file = "main.sh"
    ending = "printf %s '{0}'"


def _location(command: str) -> str:
    """Where it really lies: a link to it may stand in a folder that programs do not see."""
    found = shutil.which(command)
    return str(Path(found).resolve()) if found else command
