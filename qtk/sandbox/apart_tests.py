"""Tests that run apart from their answer: the answer's functions are in another process, and stand-ins call them there.

Nothing of the answer is loaded here. Its functions, classes and other objects are `Remote`s; their results are plain values
(`plain_values`) or other `Remote`s; their exceptions are raised anew by name. Standard library only.
"""

from __future__ import annotations

import builtins
import io
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from qtk.sandbox.answer_process import MEMORY_ERROR_EXIT, quotable
from qtk.sandbox.job import TESTS_NAME, Apart, unpacked_code
from qtk.sandbox.plain_values import Decoder, Encoder, Line

ANSWER_GONE_EXIT = 95  # what the tests end with when the answer's process has ended before them


class AnswerGone(BaseException):
    """The answer's process has ended or talks nonsense; not an Exception, so that a test does not take it for the answer's."""


class ApartTests:
    """Runs tests against the program at the other end of a connection."""

    __test__ = False

    def __init__(self, line: Line) -> None:
        self._line = line
        self._functions: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[BaseException]] = {}
        self._gone = ""
        self._encoder, self._decoder = Encoder(self._placed), Decoder(self._fetched)

    def run(self, apart: Apart) -> None:
        """Where names are in `before` only if the program has them as well, the tests have to pass with either. Whatever a test
        raises is raised, and AnswerGone at the latest at the end."""
        space, names, own = self._space(apart.before), apart.names, apart.own
        theirs = {}
        for name in (*names, *own):
            kind, value = self._named(name)
            if name in own:
                if kind == "absent":
                    space.pop(name, None)
                else:
                    theirs[name] = value
            elif kind == "found" and (name == names[0] or name not in space):
                space[name] = value
            elif name in sys.stdlib_module_names:
                space[name] = __import__(name)
        quotable(apart.tests, TESTS_NAME)
        program = unpacked_code(apart.compiled)
        for changed in ({}, theirs) if theirs else ({},):
            exec(program, {**space, **changed})  # noqa: S102 - the suite's own code
        if self._gone:
            raise AnswerGone(self._gone)

    @staticmethod
    def _space(before: str) -> dict[str, Any]:
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        if before.strip():
            exec(compile(before, "before.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the suite's own code
        return module.__dict__

    def _leave(self, reason: str) -> NoReturn:
        self._gone = reason
        raise AnswerGone(reason)

    def _named(self, name: str) -> tuple[str, Any]:
        [(kind, value)] = self._exchange(["names", [name]])
        return kind, self._decoded(value)

    def ask(self, what: str, handle: int, *values: Any) -> Any:
        """Asks for an operation on an object of the program."""
        return self._decoded(self._exchange([what, handle, *(self._encoder.encode(value) for value in values)]))

    def call(self, handle: int, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls an object of the program, and brings the arguments up to what the call made of them."""
        encode = self._encoder.encode
        return self._decoded(self._exchange(["call", handle, encode(args), encode(kwargs)], args))

    def _decoded(self, data: Any) -> Any:
        try:
            return self._decoder.decode(data)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            self._leave(f"not a value: {error}")

    def _exchange(self, request: list[Any], args: list[Any] | None = None) -> Any:
        try:
            self._line.send(request)
            while (reply := self._line.receive())[0] == "back":
                self._line.send(self._called_back(*reply[1:]))
            kind, first, *rest = reply
            if kind == "ok":
                if args is not None and rest[0] is not None:
                    _renew(args, self._decoded(rest[0]))
                return first
            names, text, told = [str(name) for name in first], str(rest[0]), str(rest[1])
        except (OSError, EOFError) as error:
            self._leave(f"the answer's process has ended: {error}")
        except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
            self._leave(f"not a reply: {error}")
        self._raise(names, text, told)

    def _called_back(self, number: int, args: Any, kwargs: Any) -> list[Any]:
        function = self._functions[number]
        try:
            result = function(*self._decoded(args), **self._decoded(kwargs))
        except Exception as error:
            return ["went", type(error).__name__, str(error)]
        return ["went", None, self._encoder.encode(result)]

    def _raise(self, names: list[str], text: str, told: str) -> NoReturn:
        kind = self._exception(names)
        try:
            error = kind(text)
        except TypeError:  # one whose constructor wants more
            error = RuntimeError(text)
        error.add_note(told)
        raise error

    def _exception(self, names: list[str]) -> type[BaseException]:
        """An exception of Python's own by name; for one of the program's, a class of that name below its own bases."""
        name = names[0] if names else "Exception"
        known = getattr(builtins, name, None) or self._exceptions.get(name)
        if isinstance(known, type) and issubclass(known, BaseException):
            return known
        bases = [getattr(builtins, base, None) for base in names[1:]]
        base = next((kind for kind in bases if isinstance(kind, type) and issubclass(kind, BaseException)), Exception)
        self._exceptions[name] = type(name, (base,), {})
        return self._exceptions[name]

    def _placed(self, value: object) -> list[Any]:
        if isinstance(value, Remote):
            return ["handle", object.__getattribute__(value, "_handle")]
        if callable(value):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        raise TypeError(f"a {type(value).__name__} of the tests cannot be handed to the answer")

    def _fetched(self, tag: str, rest: Any) -> Any:
        if tag == "exception":
            return self._exception([str(name) for name in rest])
        if tag != "handle" or type(rest) is not int:
            raise ValueError(tag)
        return Remote(self, rest)


def _renew(old: Any, new: Any) -> None:
    """Gives lists, dicts and sets the content that a call has given them, and keeps the objects where they are."""
    if type(old) is not type(new):
        return
    if type(old) is list:
        old[:] = [_kept(mine, theirs) for mine, theirs in zip(old, new, strict=False)] + new[len(old) :]
    elif type(old) is tuple:
        for mine, theirs in zip(old, new, strict=False):
            _renew(mine, theirs)
    elif type(old) is dict:
        content = {key: _kept(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(content)
    elif isinstance(old, set | bytearray) or hasattr(old, "popleft"):
        old.clear()
        (old.update if isinstance(old, set) else old.extend)(new)
    elif hasattr(old, "dtype") and old.shape == new.shape and old.shape:
        old[...] = new


def _kept(old: Any, new: Any) -> Any:
    """The old object with the new content where it can hold that, else the new one."""
    if type(old) is type(new) and isinstance(old, list | dict | set):
        _renew(old, new)
        return old
    return new


class Remote:
    """An object of the program that has no plain form: a function, a class, an instance, a generator.

    It can be called, read, walked through and compared with another such object. It equals no plain value, and it cannot be
    calculated with: what a test compares with a number or a list has to be one.
    """

    def __init__(self, tests: ApartTests, handle: int) -> None:
        object.__setattr__(self, "_tests", tests)
        object.__setattr__(self, "_handle", handle)

    def _ask(self, what: str, *values: Any) -> Any:
        return object.__getattribute__(self, "_tests").ask(what, object.__getattribute__(self, "_handle"), *values)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tests, handle = object.__getattribute__(self, "_tests"), object.__getattribute__(self, "_handle")
        return tests.call(handle, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set item", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delete item", key)

    def __len__(self) -> int:
        return int(self._ask("length"))

    def __iter__(self) -> Iterator[Any]:
        return self._ask("iterate")

    def __next__(self) -> Any:
        return self._ask("next")

    def __contains__(self, item: Any) -> bool:
        return bool(self._ask("contains", item))

    def __bool__(self) -> bool:
        return bool(self._ask("true"))

    def __str__(self) -> str:
        return str(self._ask("text"))

    def __repr__(self) -> str:
        return str(self._ask("shown"))

    def __hash__(self) -> int:
        return int(self._ask("hash"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("equal", other) is True


@dataclass(frozen=True)
class TestsOutcome:
    """How tests ended: passed; else the exit code that stands for it, and what is said about it. printed: by the tests."""

    __test__ = False
    code: int
    complaint: str
    printed: str


def run_tests(line: Line, apart: Apart) -> TestsOutcome:
    """Runs tests that are apart from their answer. Their standard output and error are this process's while they run."""
    kept = io.StringIO()
    sys.stdout = sys.stderr = kept
    code, complaint = 0, ""
    try:
        ApartTests(line).run(apart)
    except AnswerGone as error:
        code, complaint = ANSWER_GONE_EXIT, f"{error}\n"
    except MemoryError:
        code, complaint = MEMORY_ERROR_EXIT, "MemoryError\n"
    except BaseException as error:
        code, complaint = 1, "".join(traceback.format_exception(error))
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return TestsOutcome(code, complaint, kept.getvalue())
