"""Writes a commented recipe that fits a model and a GPU: what `qtk plan` says of them, put into a file to go on from."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from qtk.bench.options import parse_shapes
from qtk.checkpoint.hub import is_hub_id, model_directory
from qtk.engines.options import PlanOptions, resolved_limits
from qtk.engines.plan import EnginePlan, plan_engine
from qtk.errors import GateFailed, InputError, listing
from qtk.models.registry import spec_from_config
from qtk.models.spec import ModelSpec
from qtk.recipes.json_schema import SCHEMA_NAME
from qtk.recipes.schema import Recipe
from qtk.shipped import validated
from qtk.sizes import gpu_size_text, size_text
from qtk.targets.gpu import GpuProfile, gpu_profile, is_profile_file
from qtk.targets.refusals import Defaults, defaults_for
from qtk.targets.runtimes import runtime

# Prompt and output of an engine, the published ones first; the first that fits is taken.
_LIMITS = ((1024, 512), (512, 256), (256, 128))
_SHAPES = "16/8,64/32,256/128,1024/512"
_ROW = 512  # tokens of a row of held-out text


@dataclass(frozen=True)
class FittedRecipe:
    """The text of a recipe, and the plan that it was made by."""

    name: str
    text: str
    plan: EnginePlan


@dataclass(frozen=True)
class _Fit:
    """What was found for a model on a GPU. float_fits: whether the float model becomes an engine there too."""

    spec: ModelSpec
    gpu: GpuProfile
    plan: EnginePlan
    limits: tuple[int, int]
    defaults: Defaults
    float_fits: bool
    float_bytes: int


def fitting_recipe(model: str, gpu: str, file: Path, adapters: tuple[str, ...] = ()) -> FittedRecipe:
    """The recipe that quantizes `model` (a directory, of which config.json is enough, or an id of the hub) to INT4 for `gpu`, to
    be written to `file`, beside which its paths begin.

    Backend, group size, container and limits are those that `qtk plan` accepts. InputError for a model that qtk does not
    know or that is quantized already; GateFailed, with the reasons, where nothing fits.
    """
    directory = model_directory(model, "config")
    spec = _float_spec(directory, model)
    fit = _fit(directory, spec, gpu)
    place, chat = _placed(model, file), "model" if _has_chat_template(directory, model) else "none"
    placed_gpu = _placed(gpu, file) if is_profile_file(gpu) else fit.gpu.name
    name = f"{Path(model.partition('@')[0]).resolve().name}-{fit.gpu.name}".lower()
    text = _text(name, place, placed_gpu, tuple(_placed(adapter, file) for adapter in adapters), chat, fit)
    validated(yaml.safe_load(text), Recipe, "The recipe that was made is not valid")
    return FittedRecipe(name, text, fit.plan)


def _float_spec(directory: Path, model: str) -> ModelSpec:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{model} is not a model: there is no {path}, and it is not the id of a model on the hub."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if isinstance(config, dict) and config.get("quantization_config"):
        raise InputError(
            f"{model} is quantized already, says its config.json. Give the float model that it was made from."
        )
    return spec_from_config(config, str(path))


def _fit(directory: Path, spec: ModelSpec, gpu: str) -> _Fit:
    profile = gpu_profile(gpu)
    refused: EnginePlan | None = None
    for backend in profile.backends or (profile.default_backend,):
        for limits in _limits(spec, profile):
            options = PlanOptions(gpu=gpu, backend=backend, bits=4, max_input_len=limits[0], max_output_len=limits[1])
            plan = plan_engine(directory, options)
            if not plan.refusals:
                whole = plan_engine(directory, options.model_copy(update={"bits": 16}))
                return _Fit(
                    spec=spec,
                    gpu=profile,
                    plan=plan,
                    limits=limits,
                    defaults=defaults_for(runtime(backend), spec.module_shapes()),
                    float_fits=not whole.refusals,
                    float_bytes=whole.memory.parts[0].bytes,
                )
            refused = refused or plan
    assert refused is not None
    raise GateFailed(
        f"{directory.name} at INT4 does not become an engine for {profile.name}:\n{listing(refused.refusals)}\n"
        f"`qtk plan MODEL --bits 4 --gpu all` says where it fits."
    )


def _limits(spec: ModelSpec, gpu: GpuProfile) -> list[tuple[int, int]]:
    """Prompts and outputs within the model's context, the largest first."""
    within = [limits for limits in _LIMITS if sum(limits) <= spec.max_positions]
    if within:
        return within
    default = resolved_limits(PlanOptions(gpu=gpu.name), spec, gpu)
    return [(default.max_input_len, default.max_output_len)]


def _placed(text: str, file: Path) -> str:
    """A source as the recipe in `file` writes it: an id of the hub as it is, a path relative to the file."""
    if not Path(text).exists() and is_hub_id(text):
        return text
    path = os.path.relpath(text, file.parent)
    return path if path.startswith(".") else f"./{path}"


def _has_chat_template(directory: Path, model: str) -> bool:
    """Whether the model is asked as a chat: by its tokenizer's files, by its name where these are not here."""
    settings = directory / "tokenizer_config.json"
    if (directory / "chat_template.jinja").is_file():
        return True
    if settings.is_file():
        return '"chat_template"' in settings.read_text(encoding="utf-8", errors="replace")
    return any(word in model.lower() for word in ("instruct", "chat"))


def _text(name: str, model: str, gpu: str, adapters: tuple[str, ...], chat: str, fit: _Fit) -> str:
    plan, (prompt, output) = fit.plan, fit.limits
    memory = plan.memory
    has = f" of {gpu_size_text(memory.available_bytes)}" if memory.available_bytes is not None else ""
    bound = memory.decode_bound_tokens_per_s
    speed = f", at most {bound:.0f} tokens/s" if bound else ""
    shapes = (
        ",".join(f"{a}/{b}" for a, b in parse_shapes(_SHAPES) if a <= prompt and b <= output) or f"{prompt}/{output}"
    )
    group = fit.defaults.group_size
    others = ", ".join(backend for backend in fit.gpu.backends if backend != plan.backend)
    size = f"{plan.parameters / 1e9:.3g} billion parameters at INT4 for {fit.gpu.title}"
    merge = (
        [f"adapters: [{', '.join(adapters)}]"]
        if adapters
        else ["# adapters: [./my-adapter] # LoRA adapters to merge first"]
    )
    float_engine = (
        "true # the float engine, to compare with"
        if fit.float_fits
        else (f"false # {size_text(fit.float_bytes)} of float weights do not fit")
    )
    # What a processor's engine takes is not in its engine.json, so there it could not be judged.
    most = memory.available_bytes
    gates = [f"  - {{metric: memory, at_most: {most / 1e9:.1f}}} # GB: all of the GPU's"] if most else []
    gates += [
        f"  - {{metric: size, at_most: {math.ceil(1.5 * memory.parts[0].bytes / 1e7) / 100}}} # GB: half more than the plan's weights"
    ]
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_NAME}",
        f"# {size}: {gpu_size_text(memory.needed_bytes)} needed{has}{speed}.",
        "# What matters most: model, calibration, accuracy, gates. `qtk plan MODEL --prepare` says what the run takes here.",
        f"name: {name}",
        f"model: {json.dumps(model) if ' ' in model else model}",
        *merge,
        "",
        "quantize:",
        f"  gpu: {gpu}",
        f"  backend: {plan.backend}{f' # others: {others}' if others else ''}",
        "  method: gptq",
        "  effort: default # best: closer to the float model, in ten times the time",
        "  bits: 4",
        f"  group_size: {group} # the largest that the backend takes and that divides every layer",
        f"  container: {fit.defaults.container} # the backend's own choice",
        "  calibration: python-stdlib # better: your own text, a .txt, .jsonl or .parquet file",
        f"  samples: 128 # rows of {min(2048, fit.spec.max_positions)} tokens, unless seq_len says otherwise",
        "",
        "build:",
        f"  gpu: {gpu}",
        f"  backend: {plan.backend}",
        f"  float_engine: {float_engine}",
        f"  max_input_len: {prompt} # the model's context has {fit.spec.max_positions} tokens; more cost memory",
        f"  max_output_len: {output}",
        "  max_batch_size: 1",
        "",
        "bench:",
        "  latency:",
        f"    shapes: {shapes} # prompt/output lengths",
        "  divergence:",
        f"    rows: 16 # of each text, {min(_ROW, fit.spec.max_positions)} tokens each",
        *([f"    seq_len: {fit.spec.max_positions}"] if fit.spec.max_positions < _ROW else []),
        "  # accuracy: # the tasks lie in the folder that QTK_DATA names; `qtk list suites`",
        "  #   suite: [humaneval]",
        f"  #   chat_format: {chat}",
        "",
        "# What has to hold before a release: `qtk list gates`.",
        "gates:",
        *gates,
        "  # - {metric: kl, at_most: 0.1}",
        "  # - {metric: accuracy-drop, at_most: 4}",
        *(["  # - {metric: share-of-bound, at_least: 0.5}"] if bound else []),
    ]
    return "\n".join(lines) + "\n"
