"""A programming language: everything that qtk knows about it, in one record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.errors import InputError


@dataclass(frozen=True)
class Language:
    """A language that programs are written and run in.

    name: as suites, answers and results write it. title: as people write it. short: other words for it in --suite.
    tags: other words for it behind an opening fence. comment: the sign before CodeFuse's line `language: TITLE`, which
    is that project's choice. assembly: how answers are read and become sources. toolchain: how sources are run.
    codefuse_rules: codefuse-evaluation's, where that harness does something of its own in the language.
    bigcode_seconds: the clock of bigcode-evaluation-harness for MultiPL-E's programs, where it is not the usual one.
    """

    name: str
    title: str
    assembly: Assembly
    toolchain: Toolchain
    short: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    comment: str = "//"
    codefuse_rules: CodefuseRules | None = None
    bigcode_seconds: float | None = None

    @property
    def grammar(self) -> Grammar:
        return self.assembly.grammar

    @property
    def codefuse(self) -> CodefuseRules:
        return self.codefuse_rules or CodefuseRules(fence=self.name)

    def ready_toolchain(self, seconds: float, settings: dict[str, str | bool | float]) -> Toolchain:
        """The toolchain with a suite's clock and settings. LanguageUnavailable when its commands or libraries are
        absent; InputError for a setting that the toolchain does not have."""
        if unknown := settings.keys() - self.toolchain.settings - {"seconds"}:
            raise InputError(f"{self.name} has no setting {', '.join(sorted(unknown))}.")
        toolchain = replace(self.toolchain, **{"seconds": seconds, **settings})  # type: ignore[arg-type]
        if absent := toolchain.absent_commands():
            raise LanguageUnavailable(f"{self.name} needs {' and '.join(absent)} ({toolchain.install}).")
        toolchain.prepare()
        return toolchain
