"""The model card of a merged model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtk.adapters.adapter import Adapter
from qtk.checkpoint.card import base_sentence, carry_cards, code, read_base, table_of, write_card
from qtk.checkpoint.hub_cache import hub_identity
from qtk.checkpoint.reader import Checkpoint


def write_merged_card(
    directory: Path, name: str, model: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]
) -> None:
    """Writes README.md, and carries the base's card beside it. name: of the finished directory."""
    base = read_base(model)
    carried = carry_cards(base, directory)
    published = [identity.partition("@")[0] for adapter in adapters if (identity := hub_identity(adapter.path))]
    bases = [*base.identity, *published]
    metadata = {
        "base_model": bases if len(bases) > 1 else next(iter(bases), ""),
        "base_model_relation": "merge" if bases else "",
        **base.carried,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "lora"],
    }
    rows: list[tuple[str, object]] = [
        (
            f"adapter {number}",
            f"{adapter.config.kind}, rank {adapter.config.r}, alpha {adapter.config.lora_alpha:g}, weight {weight:g}",
        )
        for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True), 1)
    ]
    sections = [
        (
            "",
            f"{base_sentence(base)}, with {len(adapters)} adapter{'s' if len(adapters) > 1 else ''} merged in by qtk.",
        ),
        ("Use", code(f"vllm serve {name}")),
        ("Merge", table_of(rows)),
        ("The base's card", f"Carried as it stands: {', '.join(carried)}." if carried else ""),
    ]
    write_card(directory, name, metadata, sections)
