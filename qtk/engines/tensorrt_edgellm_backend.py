"""The `tensorrt-edgellm` backend: NVIDIA's TensorRT runtime for LLMs, whose exporter runs here and whose builder on the GPU.

Its export reads our checkpoint with NVIDIA's own loader and needs no GPU: what it wrote is checked against our weights.
Its builder starts from the checkpoint itself, so the engine directory keeps that and the command to run on the target.
Both tools live in an environment of their own, since they pin torch and transformers.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from qtk.engines.backends import BuildJob, FinishJob, option_refusals
from qtk.engines.describe import describe, graph_stage
from qtk.engines.description import EngineDescription, Limits, Stage, finishing_command
from qtk.engines.edgellm_tools import BUILD, EXPORT, INSTALL, edgellm_bin, tool_versions
from qtk.engines.linear_plans import table_refusals
from qtk.engines.memory_plan import memory_plan
from qtk.engines.outside_tool import find_tool, run_tool
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.errors import MachineError, listing
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.repack import repack, repack_refusals
from qtk.targets.gpu import GpuProfile
from qtk.targets.table import target

# Their own layout: a permutation of the activations goes into the graph for every gptq linear, even the identity; a
# modelopt one has a product by ones instead, which fuses with the norm before it.
CONTAINER = "modelopt"
GRAPH = "onnx/llm/model.onnx"
BUILT_NOTES = (f"Built by {BUILD}; never run by qtk.",)
_GEMM = "Int4GroupwiseGemmPlugin"
_ATTENTION = "AttentionPlugin"


class Backend:
    """Backend "tensorrt-edgellm". The export is run in the tests; no engine was ever run by us."""

    def refusals(self, job: BuildJob) -> list[str]:
        scheme, spec = job.weights.scheme, job.weights.spec
        if scheme is None:
            return ["the model is not quantized; quantize it first (`qtk quantize --sym`)"]
        reasons = option_refusals(job.options, ("float16",), ("16",), "Edge-LLM's INT4 engines work")
        reasons += table_refusals(target("tensorrt-edgellm"), job.gpu.sm, job.weights)
        reasons = reasons or repack_refusals(job.weights, checkpoint_format(CONTAINER))
        return reasons + memory_plan(spec, scheme.modules, job.limits, job.gpu, job.limits.max_positions).refusals()

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


def check_export(path: Path, weights: ModelWeights) -> None:
    """That NVIDIA's loader took every linear as we mean it: one INT4 plugin node each, our sizes, group and scales, our
    codes (counted, since their order is the kernel's), and one attention node a layer. MachineError otherwise.
    """
    spec = weights.spec
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {}
    for node in model.graph.node:
        if node.op_type.startswith(_GEMM):
            nodes[node.input[1].rpartition(".")[0]] = node
    wrong = []
    for module, linear in spec.all_linears():
        key = next((name for name in nodes if name.endswith(module)), None)
        if key is None:
            wrong.append(f"{module}: no {_GEMM} node")
            continue
        node, weight = nodes.pop(key), weights.linear(module)
        assert isinstance(weight, QuantizedLinear)
        said = {a.name: a.i for a in node.attribute}
        if (said.get("gemm_n"), said.get("gemm_k")) != (linear.out_features, linear.in_features):
            wrong.append(f"{module}: sizes {said.get('gemm_n')} x {said.get('gemm_k')}")
        if said.get("group_size") != weight.group_size:
            wrong.append(f"{module}: group {said.get('group_size')}, not {weight.group_size}")
        packed, scales = (torch.from_numpy(numpy_helper.to_array(stored[name]).copy()) for name in node.input[1:3])
        if not torch.equal(scales, weight.scales.to(torch.float16).t()):
            wrong.append(f"{module}: other scales")
        if not _same_codes(packed, weight.codes):
            wrong.append(f"{module}: other codes")
    wrong += [f"{name}: an INT4 node that belongs to no linear" for name in nodes]
    attention = sum(node.op_type == _ATTENTION for node in model.graph.node)
    if attention != spec.num_layers:
        wrong.append(f"{attention} attention nodes for {spec.num_layers} layers")
    if wrong:
        raise MachineError(f"{EXPORT} wrote another model than it was given:\n{listing(wrong)}")


def _same_codes(packed: torch.Tensor, codes: torch.Tensor) -> bool:
    """Whether the packed nibbles are our codes, in whatever order, unsigned or in two's complement, and else padding that
    weighs nothing (their layout fills up tiles of 128 outputs).
    """
    raw = packed.contiguous().view(torch.uint8).flatten()
    theirs = torch.bincount(torch.cat((raw & 15, raw >> 4)).long(), minlength=16)
    for ours, zero in ((codes, 8), (codes ^ 8, 0)):
        counts = torch.bincount(ours.flatten().long(), minlength=16)
        counts[zero] += max(0, 2 * raw.numel() - codes.numel())
        if torch.equal(theirs, counts):
            return True
    return False
