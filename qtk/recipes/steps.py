"""The steps of a recipe in their order: what each reads, where it writes, and the room's function that does it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.sources import STANDARD_LIBRARY
from qtk.finetuning.rows import data_files
from qtk.recipes.schema import Recipe, beside, is_demo_source, text_file
from qtk.targets.gpu import is_profile_file

MODEL = "model"  # the name under which steps ask for the recipe's own model
TRAINED = "finetune"  # and for the adapter that the recipe trains

Places = Mapping[str, Path]


@dataclass(frozen=True)
class StepOptions:
    """The options of a step by name, as JSON values; at_default: the names of those that have their default."""

    values: Mapping[str, Any]
    at_default: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RecipeStep:
    """One directory to be made.

    `inputs` names what the step reads: sources of the recipe, and earlier steps (their directories).
    `work(places, out, resume)` finds them in `places` by these names and writes `out`, replacing what stands there.
    resume: an unfinished `out` of the very same work lies there and may be continued.
    `texts` are text files that the step reads besides: calibration text, the profile of a GPU. `require()` raises what the
    machine lacks for it, before any work.
    """

    name: str
    stage: str
    directory: str
    options: StepOptions
    inputs: tuple[str, ...]
    work: Callable[[Places, Path, bool], None]
    texts: tuple[Path, ...] = ()
    require: Callable[[], object] = lambda: None


def adapter_name(index: int) -> str:
    """The name under which steps ask for the recipe's adapter number `index`, from 0."""
    return f"adapter {index + 1}"


def recipe_steps(recipe: Recipe, recipe_dir: Path) -> list[RecipeStep]:
    """Every step of the recipe in `recipe_dir`, each after those it reads. The last one is the report over all the others."""
    steps = _first_steps(recipe, recipe_dir)
    float_model = MODEL
    if recipe.finetune is not None:
        steps.append(_finetune(recipe, recipe_dir))
    if recipe.adapters or recipe.finetune is not None:
        steps.append(_merge(recipe))
        float_model = "merge"
    if recipe.quantize is not None:
        steps.append(_quantize(recipe, recipe_dir, float_model))
    steps += _builds(recipe, recipe_dir, float_model)
    engines = tuple(step.name for step in steps if step.stage == "build")
    if recipe.bench.sample is not None:
        steps.append(_sample(recipe, engines))
    if recipe.bench.latency is not None:
        steps.append(_latency(recipe, engines))
    if recipe.bench.divergence is not None:
        measured = ["quantize", *(["build"] if "build" in engines else [])]
        steps += [_divergence(recipe, recipe_dir, model, float_model) for model in measured]
    if recipe.bench.accuracy is not None:
        steps += [_accuracy(recipe, recipe_dir, engine) for engine in engines]
    steps.append(_report(recipe, recipe_dir, tuple(step.name for step in steps)))
    return steps


def _dump(options: BaseModel) -> StepOptions:
    given = options.model_dump(mode="json", exclude_defaults=True)
    values = options.model_dump(mode="json")
    return StepOptions(values, frozenset(values.keys() - given.keys()))


def _joined(parts: Mapping[str, StepOptions]) -> StepOptions:
    """The options of a step that takes those of several, each under the name of its part."""
    return StepOptions(
        {f"{part}.{name}": value for part, options in parts.items() for name, value in options.values.items()},
        frozenset(f"{part}.{name}" for part, options in parts.items() for name in options.at_default),
    )


def _first_steps(recipe: Recipe, recipe_dir: Path) -> list[RecipeStep]:
    """The steps that make the sources which the recipe does not find but has made, under the names of sources; and the first
    look, as early as there is a model."""
    steps = [_demo_model(recipe.model)] if is_demo_source(recipe.model) else []
    if recipe.first_look:
        steps.append(_first_look(recipe, recipe_dir))
    return steps


def _demo_model(source: str) -> RecipeStep:
    def require() -> None:
        from qtk.recipes.demo_model import require_demo_model

        require_demo_model()

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.recipes.demo_model import unpack_demo_model

        unpack_demo_model(out, overwrite=True)

    return RecipeStep(
        name=MODEL,
        stage="sources",
        directory="model",
        options=StepOptions({"source": source}),
        inputs=(),
        work=work,
        require=require,
    )


def _first_look(recipe: Recipe, recipe_dir: Path) -> RecipeStep:
    """Plain rounding takes seconds, so that the run shows early that its model becomes an engine that speaks."""
    stage, build, sample = recipe.quantize, recipe.build, recipe.bench.sample
    assert stage is not None
    assert build is not None
    assert sample is not None
    rounding = stage.quantize_options(recipe_dir).model_copy(update={"method": "rtn"})

    engine_options = build.build_options(recipe_dir)

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.results import measure_into
        from qtk.bench.sample import sample_engines
        from qtk.engines.build import build_engine
        from qtk.quantization.quantize import quantize_model

        def look() -> BaseModel:
            with tempfile.TemporaryDirectory(prefix=".first-look-", dir=out.parent) as folder:
                int4, engine = Path(folder, "int4"), Path(folder, "first-look")
                quantize_model(places[MODEL], int4, rounding, CalibrationOptions())
                build_engine(int4, engine, engine_options)
                return sample_engines([engine], sample)

        measure_into(out, "sample", sample, {"model": places[MODEL]}, look, overwrite=True)

    return RecipeStep(
        name="first-look",
        stage="sources",
        directory="first-look",
        options=_joined({"quantize": _dump(rounding), "build": _dump(build), "sample": _dump(sample)}),
        inputs=(MODEL,),
        work=work,
    )


def _finetune(recipe: Recipe, recipe_dir: Path) -> RecipeStep:
    stage = recipe.finetune
    assert stage is not None
    options = stage.finetune_options(recipe_dir)

    def require() -> None:
        from qtk.finetuning.finetune import require_trainer

        require_trainer()

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.finetuning.finetune import finetune

        finetune(places[MODEL], out, options, overwrite=True, resume=resume)

    return RecipeStep(
        name=TRAINED,
        stage="finetune",
        directory="adapter",
        options=_dump(stage),
        inputs=(MODEL,),
        work=work,
        texts=tuple(file for source in options.data for file in _data(source)),
        require=require,
    )


def _data(source: str) -> tuple[Path, ...]:
    """The files of a task; a source that is not there by its own name, for whoever reads it to complain of."""
    absent = source != STANDARD_LIBRARY and not Path(source).exists()
    return (Path(source),) if absent else data_files(source)


def _merge(recipe: Recipe) -> RecipeStep:
    given = tuple(adapter_name(index) for index in range(len(recipe.adapters)))
    adapters = given if recipe.finetune is None else (TRAINED, *given)

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.finetuning.merge_deployed import merge_adapters

        merge_adapters(places[MODEL], [places[name] for name in adapters], out, recipe.merge, overwrite=True)

    return RecipeStep(
        name="merge",
        stage="merge",
        directory="merged",
        options=_dump(recipe.merge),
        inputs=(MODEL, *adapters),
        work=work,
    )


def _quantize(recipe: Recipe, recipe_dir: Path, float_model: str) -> RecipeStep:
    stage = recipe.quantize
    assert stage is not None
    options, calibration = stage.quantize_options(recipe_dir), stage.calibration_options(recipe_dir)

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.quantization.quantize import quantize_model

        quantize_model(places[float_model], out, options, calibration, overwrite=True, resume=resume)

    return RecipeStep(
        name="quantize",
        stage="quantize",
        directory="quantized",
        options=_dump(stage),
        inputs=(float_model,),
        work=work,
        texts=(*_files(recipe_dir, (stage.calibration,)), *_profile(options.gpu)),
    )


def _files(recipe_dir: Path, sources: tuple[str, ...]) -> tuple[Path, ...]:
    """Those of the text sources that are files."""
    return tuple(file for source in sources if (file := text_file(recipe_dir, source)) is not None)


def _profile(gpu: str | None) -> tuple[Path, ...]:
    """The file of a GPU profile that does not ship."""
    return (Path(gpu),) if gpu is not None and is_profile_file(gpu) else ()


def _builds(recipe: Recipe, recipe_dir: Path, float_model: str) -> list[RecipeStep]:
    if recipe.build is None:
        return []
    stage, options = recipe.build, recipe.build.build_options(recipe_dir)

    def build(name: str, directory: str, model: str) -> RecipeStep:
        def work(places: Places, out: Path, resume: bool) -> None:
            from qtk.engines.build import build_engine

            build_engine(places[model], out, options, overwrite=True)

        return RecipeStep(
            name=name,
            stage="build",
            directory=directory,
            # paths as the recipe has them
            options=_dump(options.model_copy(update={"gpu": stage.gpu, "edgellm_bin": stage.edgellm_bin})),
            inputs=(model,),
            work=work,
            texts=_profile(options.gpu),
        )

    steps = [build("build-float", "engine-float", float_model)] if recipe.build.float_engine else []
    if recipe.quantize is not None:
        steps.append(build("build", "engine", "quantize"))
    return steps


def _sample(recipe: Recipe, engines: tuple[str, ...]) -> RecipeStep:
    options = recipe.bench.sample
    assert options is not None

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.latency_run import engine_roles
        from qtk.bench.results import measure_into
        from qtk.bench.sample import sample_engines

        # The quantized one first: it is what the run is for.
        paths = [places[engine] for engine in reversed(engines)]
        measure_into(
            out, "sample", options, engine_roles(paths), lambda: sample_engines(paths, options), overwrite=True
        )

    return RecipeStep(
        name="sample",
        stage="sample",
        directory="sample",
        options=_dump(options),
        inputs=engines,
        work=work,
    )


def _latency(recipe: Recipe, engines: tuple[str, ...]) -> RecipeStep:
    """All engines in one step, because they are called by turns."""
    options = recipe.bench.latency
    assert options is not None

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.latency_run import engine_roles, measure_engines
        from qtk.bench.results import measure_into

        paths = [places[engine] for engine in engines]
        measure_into(
            out, "latency", options, engine_roles(paths), lambda: measure_engines(paths, options), overwrite=True
        )

    return RecipeStep(
        name="latency",
        stage="latency",
        directory="latency",
        options=_dump(options),
        inputs=engines,
        work=work,
    )


def _divergence(recipe: Recipe, recipe_dir: Path, model: str, float_model: str) -> RecipeStep:
    stage = recipe.bench.divergence
    assert stage is not None
    options = stage.model_copy(update={"data": tuple(beside(recipe_dir, text) for text in stage.data)})
    name = "divergence" if model == "quantize" else "divergence-engine"
    # An engine is also compared with the checkpoint that it was built from, which shows what its arithmetic adds.
    checkpoint = None if model == "quantize" else "quantize"
    inputs = {"model": model, "reference": float_model} | ({"checkpoint": checkpoint} if checkpoint else {})

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.divergence_run import measure_divergence
        from qtk.bench.results import measure_into

        measure_into(
            out,
            "divergence",
            options,
            {role: places[name] for role, name in inputs.items()},
            lambda: measure_divergence(
                places[model], places[float_model], options, places[checkpoint] if checkpoint else None
            ),
            overwrite=True,
        )

    return RecipeStep(
        name=name,
        stage="divergence",
        directory=name,
        options=_dump(stage),
        inputs=tuple(inputs.values()),
        work=work,
        texts=_files(recipe_dir, stage.data),
    )


def _accuracy(recipe: Recipe, recipe_dir: Path, engine: str) -> RecipeStep:
    stage = recipe.bench.accuracy
    assert stage is not None
    name = f"accuracy{engine.removeprefix('build')}"

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
        from qtk.bench.accuracy.model_source import ModelSource

        options = stage.accuracy_options(recipe_dir)
        source = ModelSource(places[engine], stage.model_options(), options.rules)
        run_accuracy(options, source, Output(out, resume=resume, overwrite=True))

    return RecipeStep(
        name=name,
        stage="accuracy",
        directory=name,
        options=_dump(stage),
        inputs=(engine,),
        work=work,
    )


def _report(recipe: Recipe, recipe_dir: Path, inputs: tuple[str, ...]) -> RecipeStep:
    title = recipe.description or recipe.name
    gates = [gate.model_dump(mode="json", exclude_none=True) for gate in recipe.gates]

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.recipes.gating import RunGates, judge_of
        from qtk.release.report import write_report

        judge = judge_of(recipe.name, RunGates(recipe.gates, recipe_dir))
        write_report([places[name] for name in inputs], out, title=title, judge=judge, overwrite=True)

    return RecipeStep(
        name="report",
        stage="report",
        directory="report",
        options=StepOptions({"title": title, "gates": gates}, frozenset() if gates else frozenset({"gates"})),
        inputs=inputs,
        work=work,
    )
