"""The files beside the weights: config, tokenizer, chat template, licence; and whose tokenizer is carried."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qtk.adapters.adapter import Adapter
from qtk.checkpoint.reader import COMPANION_PATTERNS, LICENCE_PATTERNS, Checkpoint
from qtk.checkpoint.writer import copy_companions
from qtk.errors import InputError
from qtk.progress import note, warn

# What of the companions belongs to the model or its licence, and so stays the base's whoever brings the tokenizer.
_MODELS_OWN = ("generation_config.json", *LICENCE_PATTERNS)


def choose_tokenizer(
    base: Checkpoint, adapters: Sequence[Adapter], choice: Literal["auto", "base", "adapter"], *, resized: bool
) -> Path | None:
    """The adapter directory whose tokenizer files are carried; None for the base's.

    `auto`: an adapter's where it brings one and the vocabulary's size changes. What was chosen, and a tokenizer that is
    missing or passed over, is said on stderr.
    """
    bringing = [adapter.path for adapter in adapters if tokenizer_files(adapter.path)]
    if choice == "adapter" and len(bringing) != 1:
        raise InputError(
            f"--tokenizer adapter: {len(bringing)} of the adapter directories hold tokenizer files; it takes exactly one."
        )
    if choice == "adapter" or (choice == "auto" and resized and len(bringing) == 1):
        note(f"Tokenizer files are those of {bringing[0]}, not the base's.")
        return bringing[0]
    if resized:
        warn(
            f"The vocabulary changes its size, but the tokenizer files are the base's ({base.path}): added tokens are unknown."
        )
    for path in bringing:
        if not resized and _differs(base, path):
            warn(f"{path} brings tokenizer files that differ from the base's, which are carried (see --tokenizer).")
    return None


def tokenizer_files(directory: Path) -> list[Path]:
    """Tokenizer and chat template files of a directory."""
    files = {p for pattern in COMPANION_PATTERNS for p in directory.glob(pattern) if p.is_file()}
    own = {p for pattern in _MODELS_OWN for p in directory.glob(pattern)}
    return sorted(files - own)


def write_companions(base: Checkpoint, directory: Path, tokenizer: Path | None, *, config: bytes) -> None:
    """Copies the companions of the base, and the tokenizer files of `tokenizer` in place of the base's if given."""
    copy_companions(base, directory, config=config)
    if tokenizer is None:
        return
    for path in tokenizer_files(directory):
        path.unlink()
    for path in tokenizer_files(tokenizer):
        target = directory / path.relative_to(tokenizer)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _differs(base: Checkpoint, adapter: Path) -> bool:
    return any(
        not (base.path / path.relative_to(adapter)).is_file()
        or (base.path / path.relative_to(adapter)).read_bytes() != path.read_bytes()
        for path in tokenizer_files(adapter)
    )
