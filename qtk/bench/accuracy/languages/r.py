"""R: `stopifnot` ends Rscript with 1."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

R = Language(
    name="r",
    title="R",
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=Braces(re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)),
            definition=r"^NAME\s*(?:<-|=)\s*function\b",
            next_definition=re.compile(r"([\w.]+)\s*(?:<-|=)\s*function"),
        )
    ),
    toolchain=Interpreted(
        vocabulary=re.compile(r"\b(?:stopifnot|all\.equal|isTRUE|identical|quit)\s*(?:<-|=)\s*function"),
        assertion_form=Assertions((Form(r"all\.equal\(candidate\(", r"\s*,\s*"),)),
        commands=("Rscript",),
        install="apt install r-base-core",
        flags=("-e", 'eval(parse(file("stdin")))'),
        end='cat("{0}")',
    ),
    bigcode_seconds=5.0,
)
