"""The process in which an answer's Python program runs when its tests are in another one.

It is forked before anything of the job is read, gets the program and nothing else, and then answers requests: call this,
get that attribute. Arguments and results cross as plain values (`plain_values`). Whatever the program does to its own process
can only change the values that it hands over. Standard library only.
"""

from __future__ import annotations

import builtins
import linecache
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from qtk.sandbox.plain_values import Decoder, Encoder, Line

SYNTAX_ERROR_EXIT, MEMORY_ERROR_EXIT = 97, 98  # what a forked Python program ends with in these two cases
MODULE = "program"  # not __main__: what a script does only as the main program is not part of an answer
_TOLD = 4000  # characters of a traceback that are handed over

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "set item": operator.setitem,
    "delete item": operator.delitem,
    "length": len,
    "iterate": iter,
    "next": next,
    "contains": operator.contains,
    "true": bool,
    "text": str,
    "shown": repr,
    "equal": operator.eq,
    "hash": hash,
}


def loaded_program(source: str, name: str) -> types.ModuleType | int:
    """Runs a script as a module in this forked interpreter. The exit code to end with where that fails."""
    try:
        program = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        traceback.print_exception(type(error), error, None, file=sys.stderr)
        sys.stderr.flush()
        return SYNTAX_ERROR_EXIT
    module = types.ModuleType(MODULE)
    module.__dict__.update(__builtins__=builtins, __file__=name)
    sys.modules[MODULE] = module
    sys.modules["__main__"] = types.ModuleType("__main__")  # the program must not see ours
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the program
    try:
        exec(program, module.__dict__)  # noqa: S102 - the very purpose of this process
    except BaseException as error:
        return exit_code_of(error)
    return module


def exit_code_of(error: BaseException) -> int:
    """Says on standard error what ended a program, and with which code its process ends."""
    if isinstance(error, MemoryError):
        os.write(2, b"MemoryError\n")
        return MEMORY_ERROR_EXIT
    if isinstance(error, SystemExit):
        os.write(2, f"SystemExit: {error.code}\n".encode("utf-8", "replace"))
        return error.code if isinstance(error.code, int) and 0 < error.code < 95 else 1
    try:
        traceback.print_exception(error)
        sys.stderr.flush()
    except BaseException:
        return 1
    return 1


def quotable(source: str, name: str) -> None:
    """Lets tracebacks quote a source that is in no file."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)


class AnswerProcess:
    """Answers requests about a program's module, until the other end closes the connection."""

    def __init__(self, line: Line, module: types.ModuleType) -> None:
        self._line, self._module = line, module
        self._kept: list[Any] = []
        self._encoder, self._decoder = Encoder(self._handle), Decoder(self._fetched)

    def _handle(self, value: object) -> list[Any]:
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", _names(value)]
        self._kept.append(value)
        return ["handle", len(self._kept) - 1]

    def _fetched(self, tag: str, rest: Any) -> Any:
        return self._kept[rest] if tag == "handle" else _Callback(self, rest)

    def serve(self) -> None:
        """EOFError when the other end is closed."""
        while True:
            self._line.send(self._answer(self._line.receive()))

    def ask_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function of the tests that was an argument."""
        encode = self._encoder.encode
        self._line.send(["back", number, encode(list(args)), encode(kwargs)])
        while (request := self._line.receive())[0] != "went":
            self._line.send(self._answer(request))
        if request[1] is None:
            return self._decoder.decode(request[2])
        raise getattr(builtins, request[1], RuntimeError)(request[2])

    def _answer(self, request: list[Any]) -> list[Any]:
        what, target, *data = request
        try:
            if what == "names":
                return ["ok", [self._named(name) for name in target], None]
            values = [self._decoder.decode(item) for item in data]
            before = data[0] if what == "call" else None
            result = self._encoder.encode(_OPERATIONS[what](self._kept[target], *values))
            # Only what changed, so that tests can look at arguments that were changed in place.
            after = self._encoder.encode(values[0]) if before is not None and _can_change(before) else before
            return ["ok", result, after if after != before else None]
        except MemoryError as error:
            os._exit(exit_code_of(error))
        except BaseException as error:
            return ["raised", _names(type(error)), _text(error), _told(error)]

    def _named(self, name: str) -> list[Any]:
        """What the program has under a name: found or not, and the value. A module is the tests' own to import."""
        if name not in self._module.__dict__:
            return ["absent", None]
        value = self._module.__dict__[name]
        return ["absent", None] if isinstance(value, types.ModuleType) else ["found", self._encoder.encode(value)]


class _Callback:
    """Stands for a function of the tests."""

    def __init__(self, process: AnswerProcess, number: int) -> None:
        self._process, self._number = process, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._process.ask_back(self._number, args, kwargs)


def _can_change(data: Any) -> bool:
    """Whether encoded arguments hold anything that can be changed in place."""
    if type(data) is not list:
        return False
    return any(type(item) is list and (item[0] != "tuple" or _can_change(item)) for item in data[1])


def _names(kind: type[BaseException]) -> list[str]:
    """An exception's class by its name, and then those of Python's own that it is one of."""
    own = [kind.__name__] if getattr(builtins, kind.__name__, None) is not kind else []
    return own + [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]


def _text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))[:_TOLD]
    except BaseException:
        return ""


def _told(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-_TOLD:]
    except BaseException:
        return ""
