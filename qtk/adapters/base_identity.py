"""Whether an adapter names another base model than the one it is given.

Shapes decide what can be merged, but two models of one shape (a base and its instruct version) merge without an error
into nonsense. So the name in adapter_config.json is compared where it says something:
- a local directory that exists: its config and samples of its weights must be the base's (a copy elsewhere is fine);
- a hub id: must be related to a name the base goes by: its directory's, the one in a hub cache's path, or
  `_name_or_path` in its config. One name containing the other is enough; a directory called "base" says nothing.
A path of another machine says nothing and is passed over.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.progress import note

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")
# Directory names that tell nothing about the model inside.
_NAMELESS = re.compile(
    r"(base|model|models|merged|float|output|out|hf|main|latest|tmp\w*|checkpoint|ckpt|step)?[-_.]?\d*|[0-9a-f]{40}"
)
_SAMPLE_ROWS = 4


def disagreement(named: str | None, base: Checkpoint) -> str | None:
    """A sentence when the model that the adapter names is another one than `base`; None when it agrees or says nothing.

    A hub id that cannot be compared with anything is noted on stderr.
    """
    if not named:
        return None
    if Path(named).is_dir():
        return (
            None
            if _same_model(Path(named), base)
            else f"was trained on {named}, whose weights are not those of {base.path}"
        )
    if not _HUB_ID.fullmatch(named):
        return None
    wanted = _plain(named.rsplit("/", 1)[-1])
    if _NAMELESS.fullmatch(wanted):
        return None
    known = [name for name in map(_plain, _names(base)) if not _NAMELESS.fullmatch(name)]
    if not known:
        note(f"The adapter says it was trained on {named}; {base.path} states no name to compare that with.")
        return None
    if any(wanted in name or name in wanted for name in known):
        return None
    return f"was trained on {named}, and {base.path} goes by {' or '.join(sorted(set(known)))}"


def _names(base: Checkpoint) -> list[str]:
    names = []
    stated = base.config.get("_name_or_path")
    if isinstance(stated, str):
        names.append(stated.rstrip("/").rsplit("/", 1)[-1])
    for path in (base.path.absolute(), base.path.resolve()):
        cached = [match[2] for part in path.parts if (match := _HUB_CACHE.fullmatch(part))]
        names += cached or [path.name]
    return names


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _same_model(directory: Path, base: Checkpoint) -> bool:
    """Whether the model in `directory` is the base, judged by shapes and a few rows of each tensor that both hold.

    Stored in another dtype it is the same model: the finer values are rounded to the coarser dtype first.
    """
    if directory.resolve() == base.path.resolve():
        return True
    try:
        other = Checkpoint(directory)
    except InputError:
        return True  # no model there now: it says nothing
    try:
        common = [name for name in base.names if name in other]
        return bool(common) and all(_same_sample(other, base, name) for name in common)
    finally:
        other.close()


def _same_sample(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    if one.info(name).shape != other.info(name).shape:
        return False
    rows = min(_SAMPLE_ROWS, *one.info(name).shape[:1]) if one.info(name).shape else 0
    if not rows:
        return True
    first, second = one.rows(name, 0, rows), other.rows(name, 0, rows)
    if first.dtype.itemsize > second.dtype.itemsize:
        return torch.equal(first.to(second.dtype), second)
    return torch.equal(first, second.to(first.dtype))
