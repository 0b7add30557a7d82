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
        reaching=re.compile(
            r"\b(?:exit|die|namespace|use|class|interface|trait|eval|include\w*|require\w*|register_\w+|set_\w+|ob_\w+|file\w*|f\w*open|fwrite|fputs"
            r"|echo|print\w*|var_dump|debug\w*|posix_\w+|pcntl_\w+|proc_\w+|exec|system|passthru|shell_exec|throw|try|catch|\w*Exception|\w*Error|ini_\w+"
            r"|declare|function_exists|call_user\w*|create_function|GLOBALS|_SERVER|global|token_\w+|Reflection\w*|error_\w+|trigger_error|goto|test|candidate"
            r"|stream_\w+|define|constant|assert\w*|gc_\w+|sleep|__\w+)\b|`|\?>|<\?(?!php)|\$\$"
        ),
        assertion_form=Assertions((Form(r"if \(candidate\(", r"\s*!==\s*"),)),
        commands=("php",),
        install="apt install php-cli",
        end='echo "{0}";',
    ),
)
