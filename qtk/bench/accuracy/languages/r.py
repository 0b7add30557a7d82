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
        reaching=re.compile(
            r"\b(?:identical|all\.equal|isTRUE|stopifnot|stop|quit|q|cat|print|message|warning|library|require\w*|source|eval\w*|parse|assign|get\w*|set\w*|env\w*"
            r"|\w*[eE]nv|attach|unlock\w*|lock\w*|\w*Binding|trace|untrace|options|file|readLines|write\w*|system\w*|Sys\.\w+|tryCatch|try|on\.exit|sys\.\w+|parent\.\w+"
            r"|match\.call|do\.call|Recall|body|formals|delayedAssign|makeActiveBinding|reg\.finalizer|addTaskCallback|invokeRestart|signalCondition|sink|setattr|attr|class|structure"
            r"|candidate|test_humaneval|c\s*<-|list\s*<-|function\s*<-)\b|`|<<-|->>|:::?|@"
        ),
        assertion_form=Assertions((Form(r"all\.equal\(candidate\(", r"\s*,\s*"),)),
        commands=("Rscript",),
        install="apt install r-base-core",
        flags=("-e", 'eval(parse(file("stdin")))'),
        end='cat("{0}")',
    ),
    bigcode_seconds=5.0,
)
