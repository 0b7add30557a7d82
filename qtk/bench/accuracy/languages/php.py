"""PHP: a failed test throws, which ends the process with 255."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language

PHP = Language(
    name="php",
    title="PHP",
    assembly=Assembly(
        Grammar(
            blocks=Braces(re.compile(r'(?://|#)[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)),
            definition=r"^function\s+NAME\s*\(",
            next_definition=re.compile(r"(?:function|class|const)\s+(\w+)"),
        )
    ),
    toolchain=Interpreted(
        vocabulary=re.compile(r"\bfunction\s+(?:test|candidate)\b|\bregister_shutdown_function\b"),
        assertion_form=Assertions((Form(r"if \(candidate\(", r"\s*!==\s*"),)),
        commands=("php",),
        install="apt install php-cli",
        end='echo "{0}";',
    ),
)
