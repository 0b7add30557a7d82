"""Racket, with rackunit for its tests."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement, Verdict
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.options import Rules
from qtk.sandbox.job import ProgramOutcome


class _RackUnit(Interpreted):
    """A failed check only prints to standard error and leaves the exit code 0: whatever is printed there is a failure."""

    def verdict(self, outcome: ProgramOutcome, rules: Rules) -> Verdict:
        verdict = super().verdict(outcome, rules)
        return "failed" if verdict == "passed" and outcome.stderr else verdict


RACKET = Language(
    name="racket",
    title="Racket",
    tags=("rkt", "scheme", "lisp"),
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^(?=[(;#])", re.MULTILINE)),
            definition=r"^\(define\s+\(NAME[\s)]",
            next_definition=re.compile(r"\(define\s+\(?([^\s()]+)"),
        )
    ),
    toolchain=_RackUnit(
        assertion_form=Assertions((Form(r"check-within \(", r"\s+", ends=" "),), quotes='"'),
        commands=("racket",),
        install="apt install racket",
        file="main.rkt",
        silent=True,
        end='(display "{0}")',
        requirements=(Requirement('collection: "rackunit"', "rackunit", "apt install racket, not the minimal one"),),
    ),
)
