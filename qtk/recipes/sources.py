"""Where a recipe's models come from: a directory beside the recipe, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from qtk.checkpoint.hub import Wanted, fetch, is_hub_id
from qtk.errors import InputError


def resolve_source(text: str, recipe_dir: Path, wanted: Wanted = "model") -> Path:
    """The directory of a recipe's source; a model or adapter on the hub is fetched into the hub's own cache.

    InputError when the text is neither a directory nor an id that the hub knows; MachineError without a network.
    """
    local = Path(os.path.normpath(recipe_dir / text))
    if local.is_dir():
        return local
    if text.startswith((".", "/")) or not is_hub_id(text):
        raise InputError(
            f"{local} is not a directory, and {text!r} is not the id of a model on the hub (organisation/name)."
        )
    return fetch(text, wanted)
