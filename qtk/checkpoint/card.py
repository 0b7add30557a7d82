"""README.md of a model directory: the card that the hub shows, and what of the base's card goes into it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qtk.bounded.files import read_bounded
from qtk.bounded.parsing import parse_yaml
from qtk.checkpoint.hub import is_hub_id
from qtk.checkpoint.hub_cache import hub_identity
from qtk.checkpoint.publishing import shell_line
from qtk.checkpoint.reader import CARD_NAME, Checkpoint
from qtk.errors import InputError
from qtk.redaction import copy_redacted, redact

BASE_CARD_NAME = "README-base.md"
_MERGE_CARD_NAME = "README-merge.md"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
# What the base's card says that is true of the new model too.
KEPT = ("license", "license_name", "license_link", "language")
_OWN_TAG = "qtk"


@dataclass(frozen=True)
class BaseCard:
    """What is known of a base model. identity: its id on the hub, as far as that is known; commit: which state of it was
    read; metadata: of its card; made_by_qtk: whether qtk wrote that card."""

    directory: Path
    identity: tuple[str, ...]
    commit: str
    metadata: Mapping[str, Any]

    @property
    def made_by_qtk(self) -> bool:
        tags = self.metadata.get("tags")
        return isinstance(tags, list) and _OWN_TAG in tags

    @property
    def carried(self) -> dict[str, Any]:
        """Its metadata that holds for what is made of it."""
        return {key: self.metadata[key] for key in KEPT if self.metadata.get(key)}


def read_base(model: Checkpoint) -> BaseCard:
    """What the directory of a model says of where it comes from: the hub's cache, its card, its config."""
    metadata = card_metadata(model.path / CARD_NAME)
    if "license" not in metadata and isinstance(model.config.get("license"), str):
        metadata["license"] = model.config["license"]
    identity, _, commit = (hub_identity(model.path) or "").partition("@")
    named = (
        (identity,) if identity else hub_ids(metadata.get("base_model")) or hub_ids(model.config.get("_name_or_path"))
    )
    return BaseCard(model.path, named, commit, metadata)


def write_card(directory: Path, title: str, metadata: Mapping[str, Any], sections: Sequence[tuple[str, str]]) -> None:
    """Writes README.md: metadata as its front matter (empty values left out), then sections of heading and text, and the
    command that is running."""
    front = {key: value for key, value in {**metadata, "tags": [_OWN_TAG, *metadata.get("tags", [])]}.items() if value}
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---", f"# {title}"]
    if line := shell_line():
        sections = [*sections, ("Made with", code(line))]
    parts += [f"## {heading}\n\n{text}" if heading else text for heading, text in sections if text]
    (directory / CARD_NAME).write_text(redact("\n\n".join(parts)) + "\n", encoding="utf-8")


def carry_cards(base: BaseCard, directory: Path) -> list[str]:
    """Copies the base's cards, without secrets, beside the new one, under names of their own; returns these names."""
    carried = []
    earlier = base.directory / BASE_CARD_NAME
    own = _MERGE_CARD_NAME if base.made_by_qtk else BASE_CARD_NAME
    for source, name in ((earlier, BASE_CARD_NAME), (base.directory / CARD_NAME, own)):
        if source.is_file() and name not in carried:
            copy_redacted(source, directory / name)
            carried.append(name)
    return carried


def table_of(rows: Sequence[tuple[str, object]]) -> str:
    """Facts as a Markdown table of two columns."""
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def code(*lines: str) -> str:
    """Lines of a shell as Markdown."""
    return "\n".join(["```sh", *lines, "```"])


def base_sentence(base: BaseCard) -> str:
    """Names the base as the card's text does; a directory of this machine has no name there."""
    if not base.identity:
        return "a model of the author's own"
    links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in base.identity)
    return f"{links} at commit `{base.commit[:12]}`" if base.commit else links


def card_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a card: its front matter, empty where there is none or it cannot be read."""
    try:
        match = _FRONT_MATTER.match(read_bounded(card).decode(errors="replace"))
        content = parse_yaml(match[1]) if match else {}
    except (OSError, ValueError, InputError):
        return {}
    return content if isinstance(content, dict) else {}


def hub_ids(value: Any) -> tuple[str, ...]:
    """The hub ids in a text or a list of texts."""
    texts = value if isinstance(value, list) else [value]
    return tuple(text for text in texts if isinstance(text, str) and is_hub_id(text) and not Path(text).exists())
