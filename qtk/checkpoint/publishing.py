"""What a published file may say: no access tokens, and no places on the machine where it was written."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtk.checkpoint.hub_cache import cached_directory, hub_identity
from qtk.redaction import redact

# An absolute path within a text: two names at least, and not the end of a URL or of a relative path.
_PATH = re.compile(r"(?<![\w/:.~])/[\w.+@-]+(?:/[\w.+@-]+)+")
_HUB, _HOME = "hf://", "~/"


def redact_tree(value: Any) -> Any:
    """A JSON-able copy of a value with every text redacted."""
    return _copy(value, redact)


def publishable(value: Any) -> Any:
    """A JSON-able copy without secrets, in which paths are relative to the working directory, as a user would type them, and
    what lies in the home directory begins with ~."""
    return _copy(value, lambda text: _without_places(redact(text)))


def typed_command() -> list[str]:
    """The words of this process' command line, publishable."""
    return [publishable(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])]


def shell_line() -> str | None:
    """This process' command line for a card, with every path shortened to its last name; None where another program than qtk
    calls qtk."""
    place, (_, *words) = Path(sys.argv[0]), typed_command()
    if place.name != "qtk" and place.parts[-2:] != ("qtk", "__main__.py"):
        return None
    return shlex.join(["qtk", *(_last_name(word, before) for before, word in zip(["", *words], words, strict=False))])


def _last_name(word: str, before: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    local = value.startswith((".", "~", "/")) or before in ("-o", "--output") or os.path.lexists(value)
    return f"{option}{equals}{Path(value).name if local and '/' in value else value}"


def recorded_path(path: Path, start: Path) -> str:
    """How a manifest in the directory `start` names a path: "hf://organisation/name@commit" in the hub's cache, else
    relative to `start`, or from ~ where the relative path would spell out the home directory."""
    absolute = Path(os.path.abspath(path))
    if identity := hub_identity(absolute):
        return f"{_HUB}{identity}"
    home = _home()
    if home is not None and absolute.is_relative_to(home) and not start.is_relative_to(home):
        return f"{_HOME}{absolute.relative_to(home)}"
    return os.path.relpath(absolute, start)


def found_path(recorded: str, start: Path) -> Path:
    """The path that a manifest in the directory `start` names, on this machine."""
    if recorded.startswith(_HUB):
        return cached_directory(recorded.removeprefix(_HUB))
    if recorded.startswith(_HOME):
        return Path(recorded).expanduser()
    return Path(os.path.normpath(start / recorded))


def _copy(value: Any, text: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_copy(item, text) for item in value]
    if isinstance(value, int | float | bool) or value is None:
        return value
    return text(str(value))


def _without_places(text: str) -> str:
    here, home = Path.cwd(), _home()

    def shown(path: str) -> str:
        if home is not None and Path(path).is_relative_to(home) and not here.is_relative_to(home):
            return f"{_HOME}{Path(path).relative_to(home)}"
        return os.path.relpath(path, here)

    def shown_if_there(match: re.Match[str]) -> str:
        return (
            shown(match[0]) if Path(match[0]).parent.exists() else match[0]
        )  # else it may be anything, such as an address

    return shown(text) if os.path.isabs(text) and " " not in text else _PATH.sub(shown_if_there, text)


def _home() -> Path | None:
    """The home directory; None where there is none of its own (a service's is /)."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if len(home.parts) > 1 else None
