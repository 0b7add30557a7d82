"""The steps of a recipe in their order: what each reads, where it writes, and the room's function that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qtk.progress import Progress
from qtk.recipes.schema import Recipe, beside, text_file

STAGES = ("merge", "quantize", "build", "latency", "divergence", "accuracy", "report")
MODEL = "model"  # the name under which steps ask for the recipe's own model

Places = Mapping[str, Path]


@dataclass(frozen=True)
class Step:
    """One directory to be made. `inputs` names the recipe's sources and earlier steps whose directories it reads;
    `work(places, out, resume)` reads them by these names and writes `out`, replacing what stands there;
    resume: `out`.partial is of the same work and may be gone on with."""

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


def recipe_steps(recipe: Recipe, recipe_dir: Path) -> list[Step]:
    """Every step of the recipe in `recipe_dir`, each after those it reads. The last one is the report over all the others."""
    steps: list[Step] = []
    float_model = MODEL
    if recipe.adapters:
        steps.append(_merge(recipe))
        float_model = "merge"
    if recipe.quantize is not None:
        steps.append(_quantize(recipe, recipe_dir, float_model))
    steps += _builds(recipe, float_model)
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


def _merge(recipe: Recipe) -> Step:
    adapters = tuple(adapter_name(index) for index in range(len(recipe.adapters)))

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.adapters.merge import merge

        merge(places[MODEL], [places[name] for name in adapters], out, recipe.merge, overwrite=True)

    return Step("merge", "merge", "merged", _dump(recipe.merge), (MODEL, *adapters), work)


def _quantize(recipe: Recipe, recipe_dir: Path, float_model: str) -> Step:
    stage = recipe.quantize
    assert stage is not None
    calibration = stage.calibration_options(recipe_dir)
    texts = _files(recipe_dir, (stage.calibration,))

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.quantization.quantize import quantize_model

        quantize_model(places[float_model], out, stage.quantize_options(), calibration, overwrite=True, resume=resume)

    return Step("quantize", "quantize", "quantized", _dump(stage), (float_model,), work, texts)


def _files(recipe_dir: Path, sources: tuple[str, ...]) -> tuple[Path, ...]:
    """Those of the text sources that are files."""
    return tuple(file for source in sources if (file := text_file(recipe_dir, source)) is not None)


def _builds(recipe: Recipe, float_model: str) -> list[Step]:
    if recipe.build is None:
        return []
    options = recipe.build.build_options()

    def build(name: str, directory: str, model: str) -> Step:
        def work(places: Places, out: Path, resume: bool) -> None:
            from qtk.engines.build import build_engine

            build_engine(places[model], out, options, overwrite=True)

        return Step(name, "build", directory, _dump(options), (model,), work)

    steps = [build("build-float", "engine-float", float_model)] if recipe.build.float_engine else []
    if recipe.quantize is not None:
        steps.append(build("build", "engine", "quantize"))
    return steps


def _latency(recipe: Recipe, engine: str) -> Step:
    options = recipe.bench.latency
    assert options is not None
    suffix = engine.removeprefix("build")

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

    return Step(f"latency{suffix}", "latency", f"latency{suffix}", _dump(options), (engine,), work)


def _divergence(recipe: Recipe, recipe_dir: Path, model: str, float_model: str) -> Step:
    stage = recipe.bench.divergence
    assert stage is not None
    options = stage.model_copy(update={"data": tuple(beside(recipe_dir, text) for text in stage.data)})
    name = "divergence" if model == "quantize" else "divergence-engine"
    # An engine is held against the checkpoint it was built from too: what its arithmetic adds.
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

    texts = _files(recipe_dir, stage.data)
    return Step(name, "divergence", name, _dump(stage), tuple(inputs.values()), work, texts)


def _accuracy(recipe: Recipe, recipe_dir: Path, engine: str) -> Step:
    stage = recipe.bench.accuracy
    assert stage is not None
    name = f"accuracy{engine.removeprefix('build')}"

    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
        from qtk.bench.accuracy.model_source import ModelSource

        options = stage.accuracy_options(recipe_dir)
        source = ModelSource(places[engine], stage.model_options(), options.rules)
        run_accuracy(options, source, Output(out, resume=resume, overwrite=True))

    return Step(name, "accuracy", name, _dump(stage), (engine,), work)


def _report(recipe: Recipe, inputs: tuple[str, ...]) -> Step:
    def work(places: Places, out: Path, resume: bool) -> None:
        from qtk.release.report import write_report

        write_report([places[name] for name in inputs], out, title=recipe.description or recipe.name, overwrite=True)

    return Step("report", "report", "report", {"title": recipe.description or recipe.name}, inputs, work)
