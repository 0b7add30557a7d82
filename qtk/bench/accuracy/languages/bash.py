"""Bash: a failed comparison ends the process, because the tests say `set -e`."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

BASH = Language(
    name="bash",
    title="Bash",
    tags=("sh", "shell"),
    comment="#",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^\}[^\n]*", re.MULTILINE)),
            definition=r"^(?:function\s+)?NAME\s*\(\)",
            next_definition=re.compile(r"(?:function\s+)?(\w+)\s*\(\)"),
        )
    ),
    toolchain=Interpreted(
        vocabulary=re.compile(r"\b(?:set|exit|trap|test|candidate|run_test)\s*\(\)|\balias\b"),
        assertion_form=Assertions((Form(r"\[\[ \$\(", r"\s*=\s*"),)),
        commands=("bash",),
        install="apt install bash",
        flags=("-c", 'eval "$(cat)"'),
        end="printf %s '{0}'",
    ),
)
