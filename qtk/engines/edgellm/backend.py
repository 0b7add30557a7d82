"""The `tensorrt-edgellm` backend: NVIDIA's TensorRT runtime for LLMs, whose exporter runs here and whose builder on the GPU.

Its export reads our checkpoint with NVIDIA's own loader and needs no GPU: what it wrote is checked against our weights.
Its builder starts from the checkpoint itself, so the engine directory keeps that and the command to run on the target.
Both tools live in an environment of their own, since they pin torch and transformers.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from qtk.engines.backends import BuildJob, FinishJob, option_refusals
from qtk.engines.describe import describe, graph_stage
from qtk.engines.description import EngineDescription, Limits, Stage, finishing_command
from qtk.engines.edgellm.export import check_export
from qtk.engines.edgellm.tools import BUILD, EXPORT, INSTALL, edgellm_bin, tool_versions
from qtk.engines.linear_plans import table_refusals
from qtk.engines.memory_plan import memory_plan
from qtk.engines.outside_tool import find_tool, run_tool
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.errors import MachineError, listing
from qtk.models.spec import LM_HEAD_MODULE, ModelSpec
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.repack import repack, repack_refusals
from qtk.targets.gpu import GpuProfile
from qtk.targets.table import compressed, target

# Their own layout: a permutation of the activations goes into the graph for every gptq linear, even the identity; a
# modelopt one has a product by ones instead, which fuses with the norm before it.
CONTAINER = "modelopt"
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
GRAPH = "onnx/llm/model.onnx"
BUILT_NOTES = (f"Built by {BUILD}; never run by qtk.",)


class Backend:
    """Backend "tensorrt-edgellm". The export is run in the tests; no engine was ever run by us."""

    def refusals(self, job: BuildJob) -> list[str]:
        scheme, spec = job.weights.scheme, job.weights.spec
        if not scheme.quantized:
            return ["the model is not quantized; quantize it first (`qtk quantize --sym`)"]
        reasons = option_refusals(job.options, ("float16",), ("16",), "Edge-LLM's INT4 engines work")
        reasons += table_refusals(target("tensorrt-edgellm"), job.gpu.sm, job.weights)
        reasons += model_refusals(spec, job.limits) + scheme_refusals(job.weights)
        reasons = reasons or repack_refusals(job.weights, checkpoint_format(CONTAINER))
        return reasons + memory_plan(spec, scheme, job.limits, job.gpu, job.limits.max_positions).refusals()

    def build(self, job: BuildJob) -> EngineDescription:
        prepare = job.options.prepare_only
        tools = _require_tools(job.options.edgellm_bin)
        builder = None if prepare else _require_builder(tools, job.gpu)
        checkpoint = job.directory / "checkpoint"
        checkpoint.mkdir()
        repack(job.weights, checkpoint_format(CONTAINER), checkpoint, job.on_block)
        # CUDA hidden, so that the export is the same with a GPU in the machine and without.
        run_tool(
            [str(tools / EXPORT), "--target-sm", str(job.gpu.sm), "checkpoint", "onnx"],
            job.directory,
            environment={"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )
        graph = job.directory / GRAPH
        check_export(graph, job.weights)
        stage = graph_stage(graph, (0, job.weights.spec.num_layers)).model_copy(update={"file": GRAPH})
        if builder is not None:
            stage = _run_builder(builder, job, job.limits, stage)
        return describe(
            job,
            backend="tensorrt-edgellm",
            dtype=torch.float16,
            lm_head_bits=16,
            stages=(stage,),
            packages=("onnx",),
            versions=tool_versions(tools),
            built=not prepare,
            notes=prepared_notes(job) if prepare else BUILT_NOTES,
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        """Runs NVIDIA's builder on a prepared checkpoint."""
        before = job.description
        tools = _require_tools(job.options.edgellm_bin)
        builder = _require_builder(tools, job.gpu)
        job.carry("checkpoint", "onnx")
        stage = _run_builder(builder, job, before.limits, before.stages[0])
        versions = {**before.versions, **tool_versions(tools)}
        changes = {"stages": (stage,), "built": True, "notes": BUILT_NOTES, "versions": versions}
        return before.model_copy(update=changes)


def model_refusals(spec: ModelSpec, limits: Limits) -> list[str]:
    """Why a model cannot be such an engine, however it is stored: what the exporter would take in silence."""
    reasons = []
    if spec.architecture not in ARCHITECTURES:
        reasons.append(f"{spec.architecture}: Edge-LLM is given {', '.join(ARCHITECTURES)} only")
    windows = [window for window in spec.windows if window is not None]
    if windows and limits.max_positions > min(windows):
        reasons.append(
            f"{limits.max_positions} positions: the export has no attention window, and this model's is {min(windows)} tokens, "
            "so prompt and output must stay within it"
        )
    return reasons


def scheme_refusals(weights: ModelWeights) -> list[str]:
    """What the exporter turns down only after minutes."""
    spec, scheme = weights.spec, weights.scheme
    reasons = []
    if floats := [name for name, _ in spec.all_linears() if not scheme.of(name).quantized]:
        reasons.append(f"{compressed(floats)} in float: all linears of the blocks must be INT4")
    if scheme.of(LM_HEAD_MODULE).quantized:
        reasons.append("lm_head is quantized, and must stay in float")
    return reasons


def _require_tools(asked: Path | None) -> Path:
    """The directory of Edge-LLM's commands."""
    tools = edgellm_bin(asked)
    if tools is None:
        raise MachineError(
            f"The tensorrt-edgellm backend needs {EXPORT}, and it is not {f'in {asked}' if asked else 'on PATH'}. {INSTALL}."
        )
    return tools


def _require_builder(tools: Path, gpu: GpuProfile) -> str:
    """The builder, where this machine can run it for that GPU."""
    builder, reasons = find_tool(BUILD, tools), build_reasons(gpu)
    if builder is None or reasons:
        missing = [] if builder else [f"{BUILD} is not in {tools}"]
        raise MachineError(
            f"A TensorRT Edge-LLM engine is built on its GPU:\n{listing([*missing, *reasons])}\n--prepare-only exports "
            "and checks the model here and leaves the directory ready for one command on the target."
        )
    return builder


def _run_builder(builder: str, job: BuildJob | FinishJob, limits: Limits, stage: Stage) -> Stage:
    """Builds the engine of job.directory/checkpoint; the stage that it is."""
    run_tool([builder, *build_flags(limits)], job.directory, environment=gpu_environment(job.gpu))
    found = (path for path in sorted((job.directory / "engine").rglob("*.engine")) if path.stat().st_size)
    file = next(found, None)
    if file is None:
        raise MachineError(f"{BUILD} ended without an error but left no engine. Nothing was kept.")
    return stage.model_copy(update={"file": str(file.relative_to(job.directory)), "bytes": file.stat().st_size})


def build_flags(limits: Limits) -> list[str]:
    """The builder's flags with these limits."""
    return [
        *("--model-dir", "checkpoint"),
        *("--engine-dir", "engine"),
        *("--max-batch-size", str(limits.max_batch)),
        *("--max-input-len", str(limits.max_input_len)),
        *("--max-kv-cache-capacity", str(limits.max_positions)),
    ]


def prepared_notes(job: BuildJob) -> tuple[str, ...]:
    """What to run on the target: our command, and what that runs, for a machine without qtk."""
    return (
        f"Exported and checked, not built. On a machine with {job.gpu.title} and tensorrt-edgellm: "
        f"{finishing_command(job.name)}",
        f"What that runs, for a machine without qtk, in this directory: {shlex.join([BUILD, *build_flags(job.limits)])}",
    )
