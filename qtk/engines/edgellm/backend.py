"""Builds for TensorRT Edge-LLM, NVIDIA's TensorRT runtime for LLMs: its exporter runs here, its builder on the GPU.

The export reads our checkpoint with NVIDIA's own loader and needs no GPU; the result is checked against our weights. The
builder starts from the checkpoint itself, so the engine directory keeps that and the command to run on the target. Both
tools live in an environment of their own, since they pin torch and transformers.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from qtk.engines.backends import option_refusals, table_refusals
from qtk.engines.description import EngineDescription, EngineLimits, Stage, finishing_command
from qtk.engines.edgellm.export import check_export
from qtk.engines.edgellm.tools import BUILD, EXPORT, INSTALL, edgellm_bin, tool_versions
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.onnx.stage import graph_stage
from qtk.engines.outside_tool import find_tool, run_tool
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.engines.weight_refusals import weight_refusals
from qtk.errors import MachineError, listing
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.repack import repack, repack_refusals
from qtk.targets.gpu import GpuProfile
from qtk.targets.refusals import compressed
from qtk.targets.runtimes import Runtime

# Of the two containers that the exporter reads: for every gptq linear it writes a permutation of the activations into the
# graph, even the identity; for a modelopt linear a product by ones, which fuses with the norm before it.
CONTAINER = "modelopt"
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
GRAPH = "onnx/llm/model.onnx"
BUILT_NOTES = (f"Built by {BUILD}; never run by qtk.",)


class EdgeLlmBackend:
    """Exports and builds. The export is run in the tests; nobody has run such an engine for qtk yet."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def refusals(self, request: EngineRequest) -> list[str]:
        reasons = option_refusals(request.options, ("float16",), ("16",), "Edge-LLM's INT4 engines work")
        reasons += _model_refusals(request)
        if not request.scheme.quantized:
            return [
                *reasons,
                "the model is not quantized; quantize it first (`qtk quantize --backend tensorrt-edgellm`)",
            ]
        return reasons + table_refusals(self.runtime, request) + _float_refusals(request)

    def weight_refusals(self, job: BuildJob) -> list[str]:
        reasons = weight_refusals(self.runtime, job.gpu.sm, job.weights)
        if reasons or self.refusals(job):
            return reasons  # what the container refuses would repeat them
        return repack_refusals(job.weights, checkpoint_format(CONTAINER))

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
        stage = graph_stage(graph, (0, job.spec.num_layers)).model_copy(update={"file": GRAPH})
        if builder is not None:
            stage = _run_builder(builder, job, job.limits, stage)
        return job.describe(
            backend=self.runtime.name,
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


def _model_refusals(request: EngineRequest) -> list[str]:
    """Why a model cannot be such an engine, however it is stored: cases that the exporter would get wrong silently."""
    spec, positions, reasons = request.spec, request.limits.max_positions, []
    if spec.architecture not in ARCHITECTURES:
        reasons.append(f"{spec.architecture}: qtk exports only {', '.join(ARCHITECTURES)} for Edge-LLM")
    windows = [window for window in spec.windows if window is not None]
    if windows and positions > min(windows):
        reasons.append(
            f"{positions} positions: the export has no attention window, and this model's is {min(windows)} tokens, "
            "so prompt and output must stay within it"
        )
    return reasons


def _float_refusals(request: EngineRequest) -> list[str]:
    """Linears in the wrong width, which the exporter refuses only after minutes."""
    spec, scheme, reasons = request.spec, request.scheme, []
    if floats := [name for name, _ in spec.all_linears() if not scheme.of(name).quantized]:
        reasons.append(
            f"{compressed(floats)} in float: all linears of the blocks must be INT4; quantize without --override"
        )
    if scheme.of(LM_HEAD_MODULE).quantized:
        reasons.append("lm_head is quantized, and must stay in float: quantize with --lm-head-bits 16")
    return reasons


def _require_tools(directory: Path | None) -> Path:
    """The directory of Edge-LLM's commands: `directory` where one is given. MachineError where they are not there."""
    tools = edgellm_bin(directory)
    if tools is None:
        place = f"in {directory}" if directory else "on PATH"
        raise MachineError(f"The tensorrt-edgellm backend needs {EXPORT}, which is not {place}. {INSTALL}.")
    return tools


def _require_builder(tools: Path, gpu: GpuProfile) -> str:
    """The builder. MachineError where this machine cannot run it for that GPU."""
    builder, reasons = find_tool(BUILD, tools), build_reasons(gpu)
    if builder is None or reasons:
        missing = [] if builder else [f"{BUILD} is not in {tools}"]
        raise MachineError(
            f"A TensorRT Edge-LLM engine is built on its GPU:\n{listing([*missing, *reasons])}\n--prepare-only exports "
            "and checks the model here and leaves the directory ready for one command on the target."
        )
    return builder


def _run_builder(builder: str, job: BuildJob | FinishJob, limits: EngineLimits, stage: Stage) -> Stage:
    """Builds the engine of job.directory/checkpoint. Returns its stage."""
    run_tool([builder, *build_flags(limits)], job.directory, environment=gpu_environment(job.gpu))
    engines = sorted((job.directory / "engine").rglob("*.engine"))
    file = next((path for path in engines if path.stat().st_size), None)
    if file is None:
        raise MachineError(f"{BUILD} ended without an error but left no engine. Nothing was kept.")
    return stage.model_copy(update={"file": str(file.relative_to(job.directory)), "bytes": file.stat().st_size})


def build_flags(limits: EngineLimits) -> list[str]:
    """The builder's flags with these limits."""
    return [
        *("--model-dir", "checkpoint"),
        *("--engine-dir", "engine"),
        *("--max-batch-size", str(limits.max_batch)),
        *("--max-input-len", str(limits.max_input_len)),
        *("--max-kv-cache-capacity", str(limits.max_positions)),
    ]


def prepared_notes(job: BuildJob) -> tuple[str, ...]:
    """What to run on the target: qtk's command, and for a machine without qtk the builder's."""
    return (
        f"Exported and checked, not built. On a machine with {job.gpu.title} and tensorrt-edgellm: "
        f"{finishing_command(job.name)}",
        f"On a machine without qtk, in this directory: {shlex.join([BUILD, *build_flags(job.limits)])}",
    )
