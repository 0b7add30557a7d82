"""Ruby: test-unit would run when the process ends; here it runs in its place, and success goes on to the sentinel."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

RUBY = Language(
    name="ruby",
    title="Ruby",
    tags=("rb",),
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^end\b[^\n]*", re.MULTILINE)),
            definition=r"^def\s+NAME\b",
            next_definition=re.compile(r"(?:def|class|module)\s+(\w+)"),
        )
    ),
    toolchain=Interpreted(
        vocabulary=re.compile(r"\bassert_equal\b|\bPendedError\b|\bOmittedError\b|\bTest::Unit\b"),
        assertion_form=Assertions((Form(r"assert_equal\((?P<expected>.*), candidate\.call\("),)),
        commands=("ruby",),
        install="apt install ruby",
        flags=("-",),
        end=(
            "Test::Unit::AutoRunner.need_auto_run = false\n"
            "exit!(1) unless Test::Unit::AutoRunner.run\n"
            "$stdout.write('{0}')\n"
        ),
        requirements=(Requirement("test/unit", "test-unit", "apt install ruby-test-unit"),),
    ),
)
