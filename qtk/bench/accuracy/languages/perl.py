"""Perl: a failed comparison calls exit 1."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

PERL = Language(
    name="perl",
    title="Perl",
    tags=("pl",),
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^\}[^\n]*", re.MULTILINE)),
            definition=r"^sub\s+NAME\b",
            next_definition=re.compile(r"sub\s+(\w+)"),
        )
    ),
    toolchain=Interpreted(
        vocabulary=re.compile(r"\bCORE::GLOBAL\b|\*\S*eq_deeply\b"),
        assertion_form=Assertions((Form(r"eq_deeply\(\$candidate->\(", r"\s*,\s*", lines=False),)),
        commands=("perl",),
        install="apt install perl",
        flags=("-",),
        end='print "{0}";',
        requirements=(Requirement("Can't locate Test/Deep.pm", "Test::Deep", "apt install libtest-deep-perl"),),
    ),
)
