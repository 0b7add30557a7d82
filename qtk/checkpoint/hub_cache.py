"""The cache in which the Hugging Face hub's client keeps what it fetched: whose directory is whose."""

from __future__ import annotations

from pathlib import Path


def hub_identity(directory: Path) -> str | None:
    """ "organisation/name@commit" of a directory in the hub's cache; None for any other."""
    parts = directory.absolute().parts
    for index, part in enumerate(parts[:-2]):
        organisation, _, name = part.removeprefix("models--").partition("--")
        if part.startswith("models--") and name and parts[index + 1] == "snapshots":
            return f"{organisation}/{name}@{parts[index + 2]}"
    return None


def cached_directory(identity: str) -> Path:
    """Where the hub's cache of this machine has, or would have, "organisation/name@commit"."""
    from huggingface_hub.constants import HF_HUB_CACHE

    name, _, commit = identity.partition("@")
    return Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots", commit)
