"""The languages that programs can be written and run in. A new language is one file, which defines a Language, and one
line here."""

from __future__ import annotations

from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.bash import BASH
from qtk.bench.accuracy.languages.cpp import CPP
from qtk.bench.accuracy.languages.d import D
from qtk.bench.accuracy.languages.go import GO
from qtk.bench.accuracy.languages.java import JAVA
from qtk.bench.accuracy.languages.javascript import JAVASCRIPT
from qtk.bench.accuracy.languages.julia import JULIA
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.languages.lua import LUA
from qtk.bench.accuracy.languages.perl import PERL
from qtk.bench.accuracy.languages.php import PHP
from qtk.bench.accuracy.languages.python import PYTHON
from qtk.bench.accuracy.languages.r import R
from qtk.bench.accuracy.languages.racket import RACKET
from qtk.bench.accuracy.languages.ruby import RUBY
from qtk.bench.accuracy.languages.rust import RUST
from qtk.bench.accuracy.languages.swift import SWIFT

LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        *(PYTHON, JAVA, CPP, JAVASCRIPT, GO),
        *(RUST, D, SWIFT, LUA, PHP, R, RACKET, JULIA, PERL, RUBY, BASH),
    )
}


def language_named(name: str) -> Language:
    """The language of this name, as suites write it. LanguageUnavailable for one that qtk does not know."""
    if name not in LANGUAGES:
        raise LanguageUnavailable(f"qtk cannot run {name} programs. Languages: {', '.join(LANGUAGES)}.")
    return LANGUAGES[name]


def full_name(word: str) -> str:
    """The name of the language for which the word is short, or the word itself."""
    return next((language.name for language in LANGUAGES.values() if word in language.short), word)
