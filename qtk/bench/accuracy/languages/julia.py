"""Julia: a failed test set throws at its end."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

JULIA = Language(
    name="julia",
    title="Julia",
    tags=("jl",),
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^end\b[^\n]*", re.MULTILINE)),
            definition=r"^function\s+NAME\s*\(|^NAME\([^\n]*\)[^\n=]*=[^=]",
            next_definition=re.compile(r"(?:function|struct|const)\s+(\w+)"),
        )
    ),
    toolchain=Interpreted(
        assertion_form=Assertions((Form(r"@test\(candidate\(", r"\s*==\s*"),), quotes='"'),
        commands=("julia",),
        install="julialang.org; Debian 12 has no package",
        file="main.jl",
        end='print("{0}")',
        flags=("--startup-file=no", "--threads=1", "--compile=min", "-O0"),
    ),
    bigcode_seconds=5.0,
)
