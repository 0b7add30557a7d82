"""How to get an optional package: a line for pip that names packages, never qtk's own distribution.

A hint such as `pip install qtk-llm[gguf]` would be wrong in a checkout, and for anybody who takes the name of the command
for that of the distribution. The packages themselves are right everywhere.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import tomllib
from pathlib import Path

from qtk.errors import MachineError

DISTRIBUTION = "qtk-llm"
_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def install_hint(extra: str, *only: str) -> str:
    """The line that installs what qtk's extra `extra` asks for: all of it, or those packages of it that `only` names."""
    wanted = [text for text in _requirements(extra) if not only or _name(text) in only]
    if not wanted:  # neither a checkout nor an installed distribution: nothing says which versions are needed
        return f"pip install {' '.join(only)}" if only else f"install what qtk's extra {extra!r} lists"
    return f"pip install {' '.join(_quoted(text) for text in wanted)}"


def missing_package(purpose: str, package: str, extra: str) -> MachineError:
    """The error for an optional package that is not installed: "`purpose` needs the package `package`", and how to get it."""
    return MachineError(f"{purpose} needs the package {package}: {install_hint(extra, package)}")


@functools.cache
def _requirements(extra: str) -> tuple[str, ...]:
    """The requirements of an extra as they are declared: in a checkout's pyproject.toml, else in the installed metadata."""
    if _PYPROJECT.is_file():
        project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            return tuple(project["optional-dependencies"].get(extra, ()))
    try:
        stored = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    marker = re.compile(rf"\s*;\s*extra\s*==\s*['\"]{re.escape(extra)}['\"]\s*$")
    return tuple(marker.sub("", text) for text in stored if marker.search(text))


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _quoted(requirement: str) -> str:
    """As a shell takes it: < and > would redirect, brackets are patterns."""
    return requirement if re.fullmatch(r"[\w.-]+", requirement) else f"'{requirement}'"
