"""The models and adapters that a recipe names, as far as they are here, and the model that follows from them. Nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.checkpoint.hub import Wanted, is_hub_id, survey
from qtk.checkpoint.json_file import read_json
from qtk.checkpoint.reader import Checkpoint
from qtk.errors import MachineError
from qtk.models.registry import model_spec, spec_from_config
from qtk.models.spec import ModelSpec
from qtk.recipes.schema import Recipe, is_demo_source
from qtk.recipes.sources import resolve_source
from qtk.recipes.state import RunState
from qtk.recipes.steps import MODEL, adapter_name


@dataclass(frozen=True)
class NamedSource:
    """A source that the recipe names. directory: None where it would be fetched, `missing` bytes of it; config: of config.json or
    adapter_config.json; absent: why it can be neither found nor fetched."""

    text: str
    directory: Path | None
    config: Mapping[str, Any]
    missing: int = 0
    absent: str | None = None


NamedSources = Mapping[str, NamedSource]


def named_sources(recipe: Recipe, recipe_dir: Path) -> NamedSources:
    """The sources that the run does not make itself, by the name that steps ask for. InputError as of `resolve_source`."""
    texts = {MODEL: recipe.model} | {adapter_name(index): text for index, text in enumerate(recipe.adapters)}
    return {
        name: _found(text, recipe_dir, "model" if name == MODEL else "adapter")
        for name, text in texts.items()
        if not is_demo_source(text)
    }


def _found(text: str, recipe_dir: Path, wanted: Wanted) -> NamedSource:
    if Path(os.path.normpath(recipe_dir / text)).is_dir() or not is_hub_id(text):
        directory = resolve_source(text, recipe_dir, wanted)
        return NamedSource(text, directory, read_json(directory / f"{'adapter_' * (wanted == 'adapter')}config.json"))
    try:
        hub = survey(text, wanted)
    except MachineError as error:
        return NamedSource(text, None, {}, absent=f"{text} is not on this machine: {error}")
    return NamedSource(text, hub.directory, hub.config, hub.missing)


def planned_spec(sources: NamedSources, run_dir: Path, state: RunState) -> ModelSpec | None:
    """The shapes of the recipe's model; None where nothing here tells them. InputError for a model that qtk does not know."""
    source = sources.get(MODEL)
    if source is None:
        return _demo_spec(run_dir, state)
    if source.directory is not None:
        return model_spec(Checkpoint(source.directory))
    return spec_from_config(dict(source.config), source.text) if source.config else None


def _demo_spec(run_dir: Path, state: RunState) -> ModelSpec | None:
    from qtk.recipes.demo_model import demo_config

    if state.stands(run_dir, MODEL):
        return model_spec(Checkpoint(run_dir / state.steps[MODEL].directory))
    try:
        return spec_from_config(demo_config(), "the demo's model")
    except MachineError:
        return None  # the step that unpacks the model says what is lacking


def adapters_rank(recipe: Recipe, sources: NamedSources) -> int:
    """Of all adapters together, trained or given, as far as their adapter_config.json tells; 1 at the least."""
    given = [sources[adapter_name(index)].config.get("r") for index in range(len(recipe.adapters))]
    trained = 0 if recipe.finetune is None else recipe.finetune.rank
    return max(1, trained + sum(rank for rank in given if isinstance(rank, int)))
