"""The model of a recipe and its engines as they will be, from config.json alone: what sizes, times and refusals follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qtk.engines.backends import engine_backend, gpu_refusals
from qtk.engines.build import backend_name
from qtk.engines.forecast import ModelSize, QuantizationWork
from qtk.engines.jobs import EngineRequest
from qtk.engines.memory import ModelBytes, model_bytes
from qtk.engines.options import resolved_limits
from qtk.errors import InputError, listing
from qtk.models.spec import ModelSpec
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.scheme import resolve_scheme, scheme_refusals
from qtk.quantization.scheme_model import QuantizationScheme, float_scheme
from qtk.quantization.target_settings import for_target, target_refusals
from qtk.recipes.schema import Recipe
from qtk.targets.gpu import gpu_profile


@dataclass(frozen=True)
class PlannedEngine:
    """An engine that the recipe builds, and the runtime that it is for."""

    request: EngineRequest
    backend: str

    @cached_property
    def weights(self) -> ModelBytes:
        """The bytes of its weights."""
        return model_bytes(self.request.spec, self.request.scheme, self.request.floats)

    @property
    def read_a_token(self) -> int:
        """Bytes of weights that are read for each new token."""
        return sum(self.weights.blocks) + (self.weights.head or self.weights.embedding)


@dataclass(frozen=True)
class PlannedModel:
    """A recipe's model. rank: of its adapters together. quantize: the options with nothing left at auto that the target decides; None, as
    `work`, where nothing is quantized. engines: by the name of the step that builds them."""

    size: ModelSize
    rank: int
    quantize: QuantizeOptions | None
    work: QuantizationWork | None
    engines: Mapping[str, PlannedEngine]


def planned_model(recipe: Recipe, recipe_dir: Path, spec: ModelSpec, rank: int) -> PlannedModel:
    """InputError, with every reason, where the recipe's target cannot take what the recipe makes of the model."""
    options, work, scheme, complaints = None, None, None, []
    if recipe.quantize is not None:
        options = for_target(recipe.quantize.quantize_options(recipe_dir), spec)
        scheme = resolve_scheme(spec, options)
        reasons = scheme_refusals(spec, scheme, checkpoint_format(options.container))
        complaints = [f"quantize: {reason}" for reason in [*reasons, *target_refusals(options, spec, scheme)]]
        calibration = recipe.quantize.calibration_options(recipe_dir)
        length = calibration.row_length(spec.max_positions)
        work = QuantizationWork(options.method, options.effort, calibration.samples, length, options.memory)
    engines = _engines(recipe, recipe_dir, spec, scheme)
    for name, engine in engines.items():
        refused = [
            *engine_backend(engine.backend).refusals(engine.request),
            *gpu_refusals(engine.backend, engine.request),
        ]
        complaints += [f"{name}: {reason}" for reason in refused]
    if complaints:
        raise InputError(f"{recipe.name} cannot be run to its end:\n{listing(complaints)}")
    return PlannedModel(ModelSize.of(spec, scheme), rank, options, work, engines)


def _engines(
    recipe: Recipe, recipe_dir: Path, spec: ModelSpec, scheme: QuantizationScheme | None
) -> dict[str, PlannedEngine]:
    if recipe.build is None:
        return {}
    options = recipe.build.build_options(recipe_dir)
    gpu = gpu_profile(options.gpu)
    schemes = {"build-float": float_scheme(spec)} if recipe.build.float_engine else {}
    if scheme is not None:
        schemes["build"] = scheme
    backend, limits = backend_name(options, gpu), resolved_limits(options, spec, gpu)
    return {
        name: PlannedEngine(EngineRequest(spec=spec, scheme=stored, gpu=gpu, limits=limits, options=options), backend)
        for name, stored in schemes.items()
    }
