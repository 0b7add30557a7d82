"""Prompts of an exact number of tokens for an endpoint: random token ids, or where it takes texts only, random text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qtk.checkpoint.hub import is_hub_id, model_directory
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer

_TRIES = 50


def endpoint_tokenizer(given: str | None, model: str) -> TextTokenizer:
    """The tokenizer that was given (a directory or an id of the hub), or that of the model's own name. InputError where
    neither leads to one."""
    name = model if given is None else given
    if given is None and not Path(name).is_dir() and not is_hub_id(name):
        raise InputError(
            f"Prompts of exact length need the tokenizer of {model!r}: give --tokenizer a directory or a hub id of a model "
            "that has it."
        )
    return TextTokenizer(model_directory(name, "tokenizer"))


def random_ids(tokenizer: TextTokenizer, random: np.random.Generator, length: int) -> list[int]:
    """`length` random token ids, none of them special."""
    return [int(number) for number in random.choice(tokenizer.plain_ids, length)]


def random_text(tokenizer: TextTokenizer, random: np.random.Generator, length: int) -> str:
    """A random text of exactly `length` tokens, without those that a tokenizer puts in front. InputError where none is found,
    as with tokenizers that join random pieces in long chains."""
    ids = random_ids(tokenizer, random, length)
    for _ in range(_TRIES):
        text = tokenizer.decode(ids)
        made = tokenizer.encode(text)
        if len(made) == length and "\ufffd" not in text:
            return text
        # Joined or split pieces are taken as the tokenizer has them; broken characters are replaced.
        ids = [*made[:length], *random_ids(tokenizer, random, max(0, length - len(made)))]
        if "\ufffd" in text:
            ids = [token for token in ids if "\ufffd" not in tokenizer.decode([token])]
            ids += random_ids(tokenizer, random, length - len(ids))
    raise InputError(f"No text of exactly {length} tokens was found with the tokenizer of {tokenizer.directory}.")
