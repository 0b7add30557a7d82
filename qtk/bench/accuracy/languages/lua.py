"""Lua, with LuaUnit for its tests."""

from __future__ import annotations

import re

from qtk.bench.accuracy.languages.assembly import Assembly
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import Requirement
from qtk.bench.accuracy.languages.blocks import LastLine
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.interpreted import Interpreted
from qtk.bench.accuracy.languages.language import Language


class _LuaUnit(Interpreted):
    """LuaUnit ends the process with the number of failures; here a failure does, and success goes on to the sentinel."""

    def tests(self, tests: str) -> str:
        return tests.replace("os.exit(lu.LuaUnit.run())", "if lu.LuaUnit.run() ~= 0 then os.exit(1) end")


LUA = Language(
    name="lua",
    title="Lua",
    assembly=Assembly(
        Grammar(
            blocks=LastLine(re.compile(r"^end\b[^\n]*", re.MULTILINE)),
            definition=r"^(?:local\s+)?function\s+NAME\s*\(|^(?:local\s+)?NAME\s*=\s*function\b",
            next_definition=re.compile(r"(?:local\s+)?function\s+(\w+)|local\s+(\w+)\s*="),
        )
    ),
    toolchain=_LuaUnit(
        vocabulary=re.compile(r"\bassertEquals\s*=|\bos\s*\.\s*exit\s*=|\bluaunit\b"),
        assertion_form=Assertions((Form(r"lu\.assertEquals\(CALLED\(", r"\s*,\s*"),)),
        commands=("lua",),
        install="apt install lua5.4",
        flags=("-",),
        end='io.stdout:write("{0}")',
        requirements=(Requirement("module 'luaunit' not found", "LuaUnit", "apt install lua-unit"),),
    ),
)
