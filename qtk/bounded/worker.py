"""The process in which the programs of files run: chat templates, and regular expressions. Reads a request a line, answers each.

Nothing of qtk is imported here. The limits are the kernel's, so that they hold inside the regular expressions' C code: a timer of
processor time, which ends the process, and a bound to its address space, which fails an allocation.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import resource
import signal
import sys
from typing import Any, NoReturn


def _match(request: dict[str, Any]) -> dict[str, Any]:
    """{groups}: what a pattern matches at the start of a text, and its groups; null where it does not."""
    found = re.match(request["pattern"], request["text"])
    return {"groups": None if found is None else [found[0], *found.groups()]}


def _render(request: dict[str, Any]) -> dict[str, Any]:
    """{text}: a template with the values of a conversation put in."""
    parts, length = [], 0
    for part in _template(request["template"]).generate(request["values"]):
        parts.append(part)
        length += len(part)
        if length > request["longest"]:
            raise MemoryError
    return {"text": "".join(parts)}


def _check(request: dict[str, Any]) -> dict[str, Any]:
    """{}: the template compiles."""
    _template(request["template"])
    return {}


@functools.lru_cache(maxsize=4)
def _template(text: str) -> Any:
    """A compiled template, in Jinja as transformers sets it up for chat templates."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """{% generation %} marks what the assistant says, for training; the text is what it would be without."""

        tags = {"generation"}  # noqa: RUF012 - how Jinja asks for it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment.from_string(text)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


_KINDS = {"match": _match, "render": _render, "check": _check}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _KINDS[request["kind"]](request)
    except MemoryError:
        return {"error": "MemoryError", "said": "", "refused": False}
    except Exception as error:  # a template is a program, and may fail in any way that Python can
        kinds = {kind.__name__ for kind in type(error).__mro__}
        said = {"error": type(error).__name__, "said": str(error)[:2000], "refused": "TemplateError" in kinds}
        return {**said, "line": getattr(error, "lineno", None)}


def main() -> None:
    """Answers what comes on stdin until it ends. argv: bytes of address space beyond what the start takes, seconds for each request."""
    import jinja2.sandbox  # noqa: F401 - before the limits, because loading counts too

    with open("/proc/self/statm", encoding="ascii") as status:
        held = int(status.read().split()[0]) * resource.getpagesize()
    limit = held + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the command, which ends this process by closing its stdin
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[2]))
        text = json.dumps(_answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(text + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
