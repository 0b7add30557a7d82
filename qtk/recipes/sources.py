"""Where a recipe's models come from: a directory beside the recipe, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qtk.checkpoint.reader import COMPANION_PATTERNS
from qtk.errors import InputError, MachineError
from qtk.progress import note

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
# Weights as safetensors only, and the small files: pickles and Python files are never fetched.
_WANTED = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", *COMPANION_PATTERNS)


def resolve_source(text: str, recipe_dir: Path) -> Path:
    """The directory of a recipe's source; a model on the hub is downloaded (safetensors only) into the hub's own cache.

    InputError when the text is neither a directory nor an id that the hub knows; MachineError without a network.
    """
    local = Path(os.path.normpath(recipe_dir / text))
    if local.is_dir():
        return local
    if text.startswith((".", "/")) or not _HUB_ID.match(text):
        raise InputError(
            f"{local} is not a directory, and {text!r} is not the id of a model on the hub (organisation/name)."
        )
    return _download(text)


def _download(text: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    name, _, revision = text.partition("@")
    note(f"Fetching {name} from the hub, or from its cache on this machine.")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{text!r} is not a directory beside the recipe, and the hub does not know it: {error}"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MachineError(
            f"{text!r} is not a directory beside the recipe, and cannot be fetched from the hub: {error}"
        ) from None
