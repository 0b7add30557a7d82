"""Whether an adapter names another base model than the one it is given.

Shapes decide what can be merged, but two models of one shape (a base and its instruct version) merge without an error
into nonsense. So the name in adapter_config.json is compared where it says something:
- a local directory that exists: its config and samples of its weights must be the base's (a copy elsewhere is fine);
- a hub id: must be a name the base goes by: its directory's, the one in a hub cache's path, or `_name_or_path` in its
  config. What only says how the same weights are stored (-hf, -bf16) does not count; -instruct, -chat, -base and -it do.
  A directory called "base" or "weights" says nothing.
A path of another machine says nothing and is passed over.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.progress import warn

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")
_STORED_AS = {"hf", "bf16", "bfloat16", "fp16", "f16", "float16", "half", "fp32", "f32", "float32", "safetensors"}
# Words that tell nothing about the model inside, a number after them; numbers and sizes alone; digests.
_SAYS_NOTHING = re.compile(
    r"(base|models?|merged|float|outputs?|out|main|latest|checkpoints?|ckpt|step|epoch|final|best|weights?|snapshots?|"
    r"downloads?|local|cache|original|data|llm|my|the|new|old)\d*|tmp\w*|temp|\d*[bm]?|[0-9a-f]{40}"
)
# Versions of one model that have its shapes and other weights.
_VERSIONS = {"instruct", "chat", "base", "it"}
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
    wanted = _spellings(named)
    if not wanted:
        return None
    places = [tokens for name in _place_names(base) if (tokens := _tokens(name))]
    stated = [tokens for name in _stated_names(base) if (tokens := _tokens(name))]
    if not (places or stated):
        warn(f"The adapter says it was trained on {named}; {base.path} states no name to compare that with.")
        return None
    if any(name in wanted for name in places):
        return None
    # A model that was tuned further often states the one it began as: its directory's name then says which it is.
    other_version = any(_without_version(name) in map(_without_version, wanted) for name in places)
    if not other_version and any(name in wanted for name in stated):
        return None
    known = sorted({"-".join(name) for name in (*places, *stated)})
    return f"was trained on {named}, and {base.path} goes by {' or '.join(known)}"


def _place_names(base: Checkpoint) -> list[str]:
    names = []
    for path in (base.path.absolute(), base.path.resolve()):
        cached = [match[2] for part in path.parts if (match := _HUB_CACHE.fullmatch(part))]
        names += cached or [path.name]
    return names


def _stated_names(base: Checkpoint) -> list[str]:
    stated = base.config.get("_name_or_path")
    return [stated.rstrip("/").rsplit("/", 1)[-1]] if isinstance(stated, str) else []


def _tokens(name: str) -> tuple[str, ...]:
    """The words of a model's name that say which model it is; none for a name that says nothing."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    while words and words[-1] in _STORED_AS:
        words.pop()
    if all(_SAYS_NOTHING.fullmatch(word) or word in _STORED_AS for word in words):
        return ()
    return tuple(words)


def _spellings(hub_id: str) -> set[tuple[str, ...]]:
    """The names under which a model of the hub may lie in a directory: with its owner, or a part of it, in front or not."""
    owner, _, name = hub_id.rpartition("/")
    words, before = _tokens(name), tuple(word for word in re.split(r"[\W_]+", owner.lower()) if word)
    if not words:
        return set()
    splices = {before[:count] + words for count in range(len(before) + 1)}
    return splices | {words[n:] for n in range(1, len(before) + 1) if words[:n] == before[:n] and len(words) > n}


def _without_version(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in _VERSIONS)


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
