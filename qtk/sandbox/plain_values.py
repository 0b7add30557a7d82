"""Values as plain data, in the form in which they cross between an answer's process and the process of its tests.

What arrives is built anew from numbers, words and containers of exactly Python's own types, so that no method of the answer
comes along: a list that says it equals everything arrives as a list. What has no such form stays where it is, and a handle
crosses in its place. Standard library only; numpy's arrays and scalars where the worker has numpy loaded.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

_LONGEST = 64 * 2**20  # bytes of one message
_LENGTH = 4  # bytes before a message that say how long it is
_WRITE = json.JSONEncoder(separators=(",", ":")).encode
_SMALL = 2**62
_BUILTIN_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset, type(None))
}
_COUNTED: dict[str, type] = {"counter": collections.Counter, "ordered": collections.OrderedDict}

_POINTS = ("date", "time", "datetime")


def _loaded(module: str, name: str) -> Any:
    """A class of the library where its module is loaded, as it is where a value of the class is."""
    return getattr(sys.modules.get(module), name, module)


Place = Callable[[object], list[Any]]
"""What is sent in place of a value that has no plain form."""
Fetch = Callable[[str, Any], Any]
"""What stands for such a value where it arrives: its tag and what was sent with it -> the value."""


class Encoder:
    """Values to JSON's types: lists with a tag first. `place` is asked for what has no plain form."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else ["int", hex(value)]
        if kind is list or kind is tuple:
            return [kind.__name__, [self.encode(item) for item in value]]
        if kind is dict:
            return ["dict", self._pairs(value)]
        return self._uncommon(kind, value)

    def _pairs(self, value: dict[Any, Any]) -> list[Any]:
        return [[self.encode(key), self.encode(item)] for key, item in dict.items(value)]

    def _uncommon(self, kind: type, value: Any) -> Any:
        """The rest. A subclass of a plain type is read by that type's own methods, as that type."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return ["array", value.dtype.str, list(value.shape), self.encode(numpy.ndarray.tolist(value))]
        if numpy is not None and isinstance(value, numpy.generic):
            return ["scalar", value.dtype.str, self.encode(value.item())]
        for name, counted in _COUNTED.items():
            if kind is counted:
                return [name, self._pairs(value)]
        if isinstance(value, int):
            return self.encode(int.__add__(value, 0))
        if isinstance(value, float):
            return float.__add__(value, 0.0) if value == value else float("nan")
        if isinstance(value, str):
            return str.__str__(value) if kind is str else "".join(str.__iter__(value))
        if isinstance(value, list):
            return ["list", [self.encode(item) for item in list.__iter__(value)]]
        if isinstance(value, tuple):
            return ["tuple", [self.encode(item) for item in tuple.__iter__(value)]]
        if isinstance(value, dict):
            return ["dict", self._pairs(value)]
        if isinstance(value, set):
            return ["set", [self.encode(item) for item in set.__iter__(value)]]
        if isinstance(value, frozenset):
            return ["frozenset", [self.encode(item) for item in frozenset.__iter__(value)]]
        return self._of_the_library(kind, value)

    def _of_the_library(self, kind: type, value: Any) -> Any:
        if isinstance(value, bytes | bytearray):
            return ["bytearray" if isinstance(value, bytearray) else "bytes", bytes(value).decode("latin-1")]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", value.start, value.stop, value.step]
        if kind is collections.deque:
            return ["deque", [self.encode(item) for item in value]]
        if kind is type({}.keys()):
            return ["keys", [self.encode(item) for item in value]]
        if kind is type({}.items()):
            return ["items", [[self.encode(key), self.encode(item)] for key, item in value]]
        if kind is _loaded("decimal", "Decimal"):
            return ["decimal", str(value)]
        if kind is _loaded("fractions", "Fraction"):
            return ["fraction", self.encode(value.numerator), self.encode(value.denominator)]
        if any(kind is _loaded("datetime", name) for name in _POINTS) and not getattr(value, "tzinfo", None):
            return [kind.__name__, value.isoformat()]
        if kind is _loaded("datetime", "timedelta"):
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if kind is type and value in _BUILTIN_TYPES.values():
            return ["type", value.__name__]
        if value is NotImplemented or value is Ellipsis:
            return ["constant", repr(value)]
        return self._place(value)


class Decoder:
    """The way back. A tag that is not known here is given to `fetch`."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def decode(self, data: Any) -> Any:
        """ValueError, TypeError and the like for data that is not what an Encoder makes."""
        if type(data) is not list:
            return data
        tag, rest = data[0], data[1]
        if tag == "list":
            return [self.decode(item) for item in rest]
        if tag == "tuple":
            return tuple([self.decode(item) for item in rest])
        if tag == "dict":
            return {self.decode(key): self.decode(item) for key, item in rest}
        return self._uncommon(tag, rest, data)

    def _uncommon(self, tag: str, rest: Any, data: list[Any]) -> Any:
        if tag in ("set", "frozenset", "deque"):
            kind = {"set": set, "frozenset": frozenset, "deque": collections.deque}[tag]
            return kind([self.decode(item) for item in rest])
        if tag in _COUNTED:
            return _COUNTED[tag]({self.decode(key): self.decode(item) for key, item in rest})
        if tag == "keys":
            return dict.fromkeys(self.decode(item) for item in rest).keys()
        if tag == "items":
            return {self.decode(key): self.decode(item) for key, item in rest}.items()
        if tag == "array":
            numpy = sys.modules["numpy"]
            return numpy.array(self.decode(data[3]), dtype=numpy.dtype(rest)).reshape(data[2])
        if tag == "scalar":
            return sys.modules["numpy"].dtype(rest).type(self.decode(data[2]))
        return self._of_the_library(tag, rest, data)

    def _of_the_library(self, tag: str, rest: Any, data: list[Any]) -> Any:
        if tag == "int":
            return int(rest, 16)
        if tag in ("bytes", "bytearray"):
            return (bytes if tag == "bytes" else bytearray)(rest.encode("latin-1"))
        if tag == "complex":
            return complex(rest, data[2])
        if tag == "range":
            return range(rest, data[2], data[3])
        if tag == "decimal":
            return importlib.import_module("decimal").Decimal(rest)
        if tag == "fraction":
            return importlib.import_module("fractions").Fraction(self.decode(rest), self.decode(data[2]))
        if tag in _POINTS:
            return getattr(importlib.import_module("datetime"), tag).fromisoformat(rest)
        if tag == "timedelta":
            return importlib.import_module("datetime").timedelta(rest, data[2], data[3])
        if tag == "type":
            return _BUILTIN_TYPES[rest]
        if tag == "constant":
            return {"NotImplemented": NotImplemented, "Ellipsis": Ellipsis}[rest]
        return self._fetch(tag, rest)


class Line:
    """One end of a connection that carries JSON messages. end: its descriptor."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._arrived = bytearray()

    def send(self, message: Any) -> None:
        """OSError when the other end is closed, ValueError for a message that is too long."""
        text = _WRITE(message).encode("ascii")
        if len(text) > _LONGEST:
            raise ValueError("the value is too large to be handed over")
        data = len(text).to_bytes(_LENGTH, "big") + text
        sent = os.write(self._end, data)
        while sent < len(data):
            sent += os.write(self._end, memoryview(data)[sent:])

    def receive(self) -> Any:
        """The next message. EOFError when the other end is closed."""
        length = int.from_bytes(self._exactly(_LENGTH), "big")
        if length > _LONGEST:
            raise ValueError("a message is too long")
        return json.loads(self._exactly(length))

    def _exactly(self, length: int) -> bytes:
        arrived = self._arrived
        while len(arrived) < length:
            more = os.read(self._end, max(65536, length - len(arrived)))
            if not more:
                raise EOFError
            arrived += more
        data = bytes(arrived[:length])
        del arrived[:length]
        return data

    def close(self) -> None:
        os.close(self._end)
