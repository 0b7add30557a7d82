"""What this machine lacks for the steps of a recipe: packages, programs, GPUs, memory, data, a sandbox. Looked for, not tried."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.kinds import measure_of
from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.measures.tasks import LoadedTasks
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.suites.suites import MissingData, SuitePart, chosen_parts
from qtk.calibration.sources import STANDARD_LIBRARY
from qtk.engines.edgellm.tools import edgellm_bin
from qtk.engines.outside_tool import find_tool
from qtk.engines.target_machine import build_reasons
from qtk.errors import MachineError
from qtk.install_hints import install_hint
from qtk.peak_memory import resident_bytes
from qtk.quantization.compute import compute_device
from qtk.quantization.memory_need import activation_bytes
from qtk.recipes.planned_model import PlannedEngine, PlannedModel
from qtk.recipes.schema import Recipe
from qtk.recipes.step_forecasts import Takes
from qtk.recipes.steps import RecipeStep
from qtk.sandbox.pool import choose_level
from qtk.sizes import size_text
from qtk.targets.runtimes import Dependency, engine_parts

What = Literal["package", "program", "GPU", "memory", "disk", "hub", "data", "sandbox"]


class Lack(BaseModel):
    """Something that the machine lacks. step: the first that needs it; text: what it is, and how to get it or do without."""

    model_config = ConfigDict(frozen=True)
    what: What
    step: str
    text: str


@dataclass(frozen=True)
class MemoryThere:
    """Bytes of memory: of the machine, and free just now."""

    total: int
    available: int


@dataclass(frozen=True)
class SuiteTasks:
    """What the suites of a recipe ask for. programs: how many; None where something else is asked, or a file is not here."""

    programs: int | None
    lacks: tuple[Lack, ...]


def step_lacks(
    step: RecipeStep, recipe: Recipe, model: PlannedModel | None, takes: Takes, memory: MemoryThere
) -> list[Lack]:
    """What a step lacks that is to be done. model: None where config.json is not here, which leaves what follows from it unsaid."""
    found: list[Lack] = []
    try:
        step.require()
    except MachineError as error:
        found.append(Lack(what="package", step=step.name, text=str(error)))
    if recipe.finetune is not None and step.stage == "finetune":
        found += _device(step, recipe.finetune.device)
    if recipe.quantize is not None and step.stage == "quantize":
        found += _for_quantize(step, recipe, model, memory)
    elif model is not None and takes.memory is not None and takes.memory - resident_bytes() > memory.available:
        text = f"about {size_text(takes.memory)} of memory are needed, {size_text(memory.available)} are free"
        found.append(Lack(what="memory", step=step.name, text=text))
    if model is not None:
        found += _for_engines(step, recipe, model)
    return found


def _for_quantize(step: RecipeStep, recipe: Recipe, model: PlannedModel | None, memory: MemoryThere) -> Iterator[Lack]:
    stage = recipe.quantize
    assert stage is not None
    yield from _device(step, stage.device)
    container = model.quantize.container if model is not None and model.quantize is not None else stage.container
    if container == "gguf":
        yield from _package(step, "gguf", "gguf", "gguf")
    if stage.method != "rtn" and stage.calibration.endswith(".parquet"):
        yield from _package(step, "pyarrow", "pyarrow", "datasets")
    if stage.method != "rtn" and stage.calibration != STANDARD_LIBRARY and not step.texts:
        yield from _package(step, "datasets", "datasets", "datasets")
    if model is not None and model.work is not None:
        need = model.work.memory_need(model.size.spec)
        try:
            activation_bytes(need, model.work.memory, total=memory.total, available=memory.available)
        except MachineError as error:
            yield Lack(what="memory", step=step.name, text=str(error))


def _device(step: RecipeStep, name: str) -> Iterator[Lack]:
    try:
        compute_device(name)
    except MachineError as error:
        yield Lack(what="GPU", step=step.name, text=str(error))


def _for_engines(step: RecipeStep, recipe: Recipe, model: PlannedModel) -> Iterator[Lack]:
    """What building or running the step's engines lacks."""
    tools = recipe.build.edgellm_bin if recipe.build is not None else None
    prepare_only = recipe.build is not None and recipe.build.prepare_only
    engines = [model.engines[name] for name in (step.name, *step.inputs) if name in model.engines]
    if step.name == "first-look":
        engines = [model.engines["build"]]
    for engine in engines:
        parts = engine_parts(engine.backend)
        builds, runs = step.stage in ("build", "sources"), step.stage not in ("build", "report")
        needed = (*(parts.to_build if builds and not prepare_only else ()), *(parts.to_run if runs else ()))
        for need in dict.fromkeys(needed):
            yield from _dependency(step, need, tools)
        if (runs or (builds and parts.built_on_gpu and not prepare_only)) and not engine.request.gpu.is_cpu:
            yield from _gpu(step, engine)


def _gpu(step: RecipeStep, engine: PlannedEngine) -> Iterator[Lack]:
    yield from (Lack(what="GPU", step=step.name, text=reason) for reason in build_reasons(engine.request.gpu))


def _dependency(step: RecipeStep, need: Dependency, tools: Path | None) -> Iterator[Lack]:
    if need.kind == "package":
        present = _importable(need.module or need.name)
    else:
        present = find_tool(need.name) is not None or find_tool(need.name, edgellm_bin(tools)) is not None
    if not present:
        text = f"{need.name}, which {need.purpose}: {need.install}"
        yield Lack(what=need.kind, step=step.name, text=text)


def _package(step: RecipeStep, module: str, package: str, extra: str) -> Iterator[Lack]:
    if not _importable(module):
        yield Lack(what="package", step=step.name, text=f"{package}: {install_hint(extra, package)}")


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def suite_tasks_of(step: str, options: AccuracyOptions) -> SuiteTasks:
    """Reads the task files of the suites, and looks for the languages and the sandbox that their programs need. What would be downloaded
    is left aside. InputError for suites that do not exist, or files that do not fit them."""
    parts = [part for text in options.suite for part in chosen_parts(text)]
    lacks: list[Lack] = []
    counts = [_tasks_of(part, step, options, lacks.append) for part in parts]
    if any(part.suite.kind == "programs" for part in parts):
        try:
            choose_level(options.sandbox, options.allow_unsandboxed)
        except MachineError as error:
            lacks.append(Lack(what="sandbox", step=step, text=str(error)))
    programs = sum(count for count in counts if count is not None)
    return SuiteTasks(None if None in counts else programs, tuple(lacks))


def _tasks_of(part: SuitePart, step: str, options: AccuracyOptions, lacking: Callable[[Lack], None]) -> int | None:
    """How many programs a part asks for; None for parts of another kind, and where its file is not here."""
    kind = part.suite.kind
    if kind == "lm-eval":
        for module in ("lm_eval", "datasets"):
            if not _importable(module):
                package = module.replace("_", "-")
                lacking(Lack(what="package", step=step, text=f"{package}: {install_hint('eval', package)}"))
        return None
    if kind == "choices" and options.hub:
        return None
    try:
        data = measure_of(kind)(options).load(part)
        if kind == "programs":
            settings = part.suite.languages[part.name].settings
            language_named(part.name).ready_toolchain(part.suite.seconds, settings)
    except MissingData as error:
        if part.required:
            lacking(Lack(what="data", step=step, text=str(error)))
        return None
    except LanguageUnavailable as error:
        lacking(Lack(what="program", step=step, text=str(error)))
        return None
    return len(data.tasks) if kind == "programs" and isinstance(data, LoadedTasks) else None
