"""The steps of a recipe in their order: what each reads, where it writes, and the room's function that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qtk.progress import Progress
from qtk.recipes.schema import Recipe, beside, text_file
from qtk.targets.gpu import is_profile_file

MODEL = "model"  # the name under which steps ask for the recipe's own model

Places = Mapping[str, Path]


@dataclass(frozen=True)
class RecipeStep:
    """One directory to be made.

    `inputs` names what the step reads: sources of the recipe, and earlier steps (their directories).
    `work(places, out, resume)` finds them in `places` by these names and writes `out`, replacing what stands there.
    resume: an unfinished `out` of the very same work lies there and may be continued.
    `texts` are text files that the step reads besides: calibration text, the profile of a GPU.
    """

    name: str
    stage: str
    directory: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    work: Callable[[Places, Path, bool], None]
    texts: tuple[Path, ...] = ()


def adapter_name(index: int) -> str:
    """The name under which steps ask for the recipe's adapter number `index`, from 0."""
    return f"adapter {index + 1}"


def recipe_steps(recipe: Recipe, recipe_dir: Path) -> list[RecipeStep]:
    """Every step of the recipe in `recipe_dir`, each after those it reads. The last one is the report over all the others."""
    steps: list[RecipeStep] = []
    float_model = MODEL
    if recipe.adapters:
        steps.append(_merge(recipe))
        float_model = "merge"
    if recipe.quantize is not None:
        steps.append(_quantize(recipe, recipe_dir, float_model))
    steps += _builds(recipe, recipe_dir, float_model)
    engines = [step.name for step in steps if step.stage == "build"]
    steps += [_latency(recipe, engine) for engine in engines if recipe.bench.latency is not None]
    if recipe.bench.divergence is not None:
        measured = ["quantize", *(["build"] if "build" in engines else [])]
        steps += [_divergence(recipe, recipe_dir, model, float_model) for model in measured]
    if recipe.bench.accuracy is not None:
        steps += [_accuracy(recipe, recipe_dir, engine) for engine in engines]
    steps.append(_report(recipe, tuple(step.name for step in steps)))
    return steps


def _dump(options: BaseModel) -> dict[str, Any]:
    return options.model_dump(mode="json")


def _merge(recipe: Recipe) -> RecipeStep:
    adapters = tuple(adapter_name(index) for index in range(len(recipe.adapters)))

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.adapters.merge import merge

        merge(places[MODEL], [places[name] for name in adapters], out, recipe.merge, overwrite=True)

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
            options=_dump(options.model_copy(update={"gpu": stage.gpu})),  # a path as the recipe has it
            inputs=(model,),
            work=work,
            texts=_profile(options.gpu),
        )

    steps = [build("build-float", "engine-float", float_model)] if recipe.build.float_engine else []
    if recipe.quantize is not None:
        steps.append(build("build", "engine", "quantize"))
    return steps


def _latency(recipe: Recipe, engine: str) -> RecipeStep:
    options = recipe.bench.latency
    assert options is not None
    name = f"latency{engine.removeprefix('build')}"

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.latency import measure
        from qtk.bench.results import measure_into
        from qtk.engines.sessions.session import open_session

        def run() -> BaseModel:
            with (
                open_session(places[engine], options.threads) as session,
                Progress(f"latency of {places[engine].name}", None, "calls") as progress,
            ):
                return measure(session, options, on_call=lambda detail: progress.advance(1, detail))

        measure_into(out, "latency", options, {"engine": places[engine]}, run, overwrite=True)

    return RecipeStep(
        name=name,
        stage="latency",
        directory=name,
        options=_dump(options),
        inputs=(engine,),
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
        from qtk.bench.divergence import measure_divergence
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


def _report(recipe: Recipe, inputs: tuple[str, ...]) -> RecipeStep:
    title = recipe.description or recipe.name

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.release.report import write_report

        write_report([places[name] for name in inputs], out, title=title, overwrite=True)

    return RecipeStep(
        name="report",
        stage="report",
        directory="report",
        options={"title": title},
        inputs=inputs,
        work=work,
    )
