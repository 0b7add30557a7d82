"""The languages that programs can be run in. A new one is one file and one line here."""

from __future__ import annotations

from qtk.bench.accuracy.languages.base import Toolchain
from qtk.bench.accuracy.languages.compiled import D, Rust, Swift
from qtk.bench.accuracy.languages.cpp import Cpp
from qtk.bench.accuracy.languages.go import Go
from qtk.bench.accuracy.languages.interpreted import Bash, Julia, Lua, Perl, Php, R, Racket, Ruby
from qtk.bench.accuracy.languages.java import Java
from qtk.bench.accuracy.languages.javascript import JavaScript
from qtk.bench.accuracy.languages.python import Python

TOOLCHAINS: dict[str, type[Toolchain]] = {
    toolchain.language: toolchain
    for toolchain in (
        *(Python, Java, Cpp, JavaScript, Go),
        *(Rust, D, Swift, Lua, Php, R, Racket, Julia, Perl, Ruby, Bash),
    )
}
