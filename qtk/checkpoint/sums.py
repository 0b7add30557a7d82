"""SHA256SUMS: the sha256 of every file of a directory, in the form that `sha256sum -c` takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from qtk.checkpoint.manifest import SIGNATURE_NAME, SUMS_NAME
from qtk.errors import GateFailed

_LINE = re.compile(r"(?P<escaped>\\?)(?P<sha256>[0-9a-f]{64}) [ *](?P<name>.+)")
# What hubs put beside the files of a repository, or their clients beside a download.
_OF_A_HUB = (".gitattributes", ".cache", ".msc", ".mv", ".mdl", ".git")


def sums_text(digests: Mapping[str, str]) -> str:
    """The lines of a list of sums. digests: name -> sha256."""
    return "".join(_line(name, sha256) for name, sha256 in sorted(digests.items()))


def read_sums(directory: Path) -> dict[str, str]:
    """name -> sha256 of the list in `directory`. GateFailed where it is missing or is not such a list."""
    path = directory / SUMS_NAME
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise GateFailed(
            f"{directory} is a bundle without {SUMS_NAME}, so nothing says what its files should be."
        ) from None
    except UnicodeDecodeError:
        raise GateFailed(f"changed: {path} is not a list of sums.") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        name = None if match is None else _unescaped(match["name"]) if match["escaped"] else match["name"]
        if match is None or name is None or not _inside(name):
            raise GateFailed(f"changed: {path}, line {number} is not the sum of a file in this directory.")
        sums[name] = match["sha256"]
    return sums


def summed_files(directory: Path) -> list[Path]:
    """Every file below `directory` that its list should name, sorted: all but the list and its signature, and what a hub puts
    beside them."""
    files = (path for path in directory.rglob("*") if path.is_file() and not of_a_hub(path.relative_to(directory)))
    return sorted(path for path in files if path not in (directory / SUMS_NAME, directory / SIGNATURE_NAME))


def of_a_hub(path: Path | PurePosixPath) -> bool:
    """Whether a path in a repository is the hub's own, not a publisher's."""
    return path.parts[0] in _OF_A_HUB


def _line(name: str, sha256: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def _unescaped(name: str) -> str:
    return re.sub(r"\\([\\nr])", lambda match: {"n": "\n", "r": "\r"}.get(match[1], "\\"), name)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
