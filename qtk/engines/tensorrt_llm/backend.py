"""The `tensorrt-llm` backend: the checkpoint of TensorRT-LLM's engine backend, and trtllm-build where it is installed.

Engines exist up to TensorRT-LLM 1.2. From 1.3 on it runs a Hugging Face checkpoint in ModelOpt's layout directly:
`qtk quantize --container modelopt` writes that, and nothing is built.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path

from qtk.engines.backends import BuildJob, FinishJob, option_refusals
from qtk.engines.describe import describe
from qtk.engines.description import EngineDescription, Limits, Stage, finishing_command
from qtk.engines.linear_plans import has_act_order, zero_refusals
from qtk.engines.memory_plan import memory_plan
from qtk.engines.outside_tool import find_tool, run_tool, tool_help
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.engines.tensorrt_llm.checkpoint import ARCHITECTURES, DTYPE, Split, write_checkpoint
from qtk.errors import MachineError
from qtk.machine import gpus
from qtk.models.spec import Linear, ModelSpec
from qtk.targets.gpu import GpuProfile
from qtk.targets.table import LinearPlan, refusals, target

TOOL = "trtllm-build"
CONTAINER = "NVIDIA's tensorrt-llm/release, tag 1.1.0"
_NEWER = "TensorRT-LLM 1.3 and later have no engines: they run what `qtk quantize --container modelopt` writes."
_MOST_TOKENS = 8192  # trtllm-build's own bound on the tokens of one step


class Backend:
    """Backend "tensorrt-llm". Checkpoints are checked by a reader of their documentation; no engine was ever run by us."""

    def refusals(self, job: BuildJob) -> list[str]:
        spec, scheme, split = job.weights.spec, job.weights.scheme, _split(job)
        reasons = option_refusals(job.options, ("float16",), ("16",), "qtk writes TensorRT-LLM checkpoints")
        reasons += model_refusals(spec, job.limits, split)
        memory = memory_plan(spec, scheme, job.limits, job.gpu, job.limits.max_positions)
        reasons += memory.refusals(split.ranks)
        if not scheme.quantized:
            return reasons
        plans = {
            name: LinearPlan(_outputs(linear, spec, split), linear.in_features, s.bits, s.group_size, s.symmetric)
            for name, linear in spec.all_linears()
            for s in (scheme.modules[name],)
        }
        quantized = {name: plan for name, plan in plans.items() if plan.bits < 16}
        row, reordered = target("tensorrt-llm"), has_act_order(job.weights, quantized)
        reasons += refusals(row, job.gpu.sm, plans, tensor_parallel=split.tensor_parallel, act_order=reordered)
        reasons += zero_refusals(row, job.weights, quantized)
        if floats := [name for name, plan in plans.items() if plan.bits == 16]:
            reasons.append(
                f"{floats[0]} and {len(floats) - 1} more are in float; all linears of the blocks must be INT4"
            )
        if len({plan.group_size for plan in plans.values()}) > 1:
            reasons.append("several group sizes; a TensorRT-LLM checkpoint has one")
        return reasons

    def build(self, job: BuildJob) -> EngineDescription:
        tool = None if job.options.prepare_only else _require_tool(job.gpu)
        flags = [] if tool is None else build_flags(job.limits, tool_help(tool))
        checkpoint = job.directory / "checkpoint"
        checkpoint.mkdir()
        write_checkpoint(job.weights, checkpoint, _split(job), job.on_block)
        if tool is None:
            return self._describe(job, "checkpoint/rank{}.safetensors", built=False, notes=prepared_notes(job))
        version = _run(tool, flags, job)
        return self._describe(job, "engine/rank{}.engine", built=True, notes=built_notes(version), version=version)

    def finish(self, job: FinishJob) -> EngineDescription:
        """Runs trtllm-build on a prepared checkpoint."""
        before = job.description
        tool = _require_tool(job.gpu)
        flags = build_flags(before.limits, tool_help(tool))
        job.carry("checkpoint")
        version = _run(tool, flags, job)
        changes = {
            "stages": _stages(job, "engine/rank{}.engine", before.num_layers),
            "versions": {**before.versions, "tensorrt-llm": version},
            "built": True,
            "notes": built_notes(version),
        }
        return before.model_copy(update=changes)

    def _describe(
        self, job: BuildJob, pattern: str, *, built: bool, notes: tuple[str, ...], version: str | None = None
    ) -> EngineDescription:
        return describe(
            job,
            backend="tensorrt-llm",
            dtype=DTYPE,
            lm_head_bits=16,
            stages=_stages(job, pattern, job.weights.spec.num_layers),
            packages=("tensorrt-llm",),
            versions={} if version is None else {"tensorrt-llm": version},
            built=built,
            notes=notes,
        )


def _run(tool: str, flags: list[str], job: BuildJob | FinishJob) -> str:
    """Runs the builder in the directory; the version that built."""
    run_tool([tool, *flags], job.directory, environment=gpu_environment(job.gpu))
    return check_engines(job.directory / "engine", _split(job))


def _stages(job: BuildJob | FinishJob, pattern: str, layers: int) -> tuple[Stage, ...]:
    """One stage a rank, whose file `pattern` names."""
    split, stages = _split(job), []
    for rank in range(split.ranks):
        own = split.layers(rank // split.tensor_parallel, layers)
        file = pattern.format(rank)
        size = (job.directory / file).stat().st_size
        stages.append(Stage(file=file, layers=(own.start, own.stop), inputs=(), outputs=(), bytes=size))
    return tuple(stages)


def built_notes(version: str) -> tuple[str, ...]:
    return (f"Built by {TOOL} of TensorRT-LLM {version}, which alone can run it; never run by qtk.",)


def _outputs(linear: Linear, spec: ModelSpec, split: Split) -> int:
    """Output rows over all ranks: more than the linear has where ranks outnumber key/value heads and hold copies."""
    if linear.name.endswith(("k_proj", "v_proj")):
        return len(split.kv_heads(0, spec.num_kv_heads)) * spec.head_dim * split.tensor_parallel
    return linear.out_features


def model_refusals(spec: ModelSpec, limits: Limits, split: Split) -> list[str]:
    """Why a model cannot become such a checkpoint, however it is stored; empty when it can."""
    reasons = split_refusals(spec, split)
    if spec.architecture not in ARCHITECTURES:
        reasons.append(f"{spec.architecture}: qtk writes TensorRT-LLM checkpoints of {', '.join(ARCHITECTURES)} only")
    windows = [window for window in spec.windows if window is not None]
    if windows and limits.max_positions > min(windows):
        reasons.append(
            f"{limits.max_positions} positions: the checkpoint has no word for this model's attention window of "
            f"{min(windows)} tokens, so prompt and output must stay within it"
        )
    return reasons


def split_refusals(spec: ModelSpec, split: Split) -> list[str]:
    """Why a model cannot be cut so over ranks; empty when it can."""
    tp, pp, reasons = split.tensor_parallel, split.pipeline_parallel, []
    if spec.num_heads % tp:
        reasons.append(f"--tp {tp} does not divide {spec.num_heads} attention heads")
    if max(spec.num_kv_heads, tp) % min(spec.num_kv_heads, tp):
        reasons.append(f"--tp {tp} neither divides {spec.num_kv_heads} key/value heads nor is a multiple of them")
    if spec.intermediate_size % tp:
        reasons.append(f"--tp {tp} does not divide the intermediate size {spec.intermediate_size}")
    if spec.num_layers % pp:
        reasons.append(f"--pp {pp} does not divide {spec.num_layers} layers")
    return reasons


def build_flags(limits: Limits, known: str) -> list[str]:
    """trtllm-build's flags with these limits. `known`: what its --help prints; versions name the length apart."""
    tokens = max(limits.max_input_len, min(_MOST_TOKENS, limits.max_batch * limits.max_input_len))
    length = (
        ["--max_seq_len", str(limits.max_positions)]
        if "--max_seq_len" in known
        else ["--max_output_len", str(limits.max_output_len)]
    )
    return [
        *("--checkpoint_dir", "checkpoint"),
        *("--output_dir", "engine"),
        *("--max_batch_size", str(limits.max_batch)),
        *("--max_input_len", str(limits.max_input_len)),
        *length,
        *("--max_num_tokens", str(tokens)),
        *("--gemm_plugin", "auto"),
    ]


def prepared_notes(job: BuildJob) -> tuple[str, ...]:
    """What to run, and where, to turn a prepared directory into an engine."""
    command = shlex.join([TOOL, *build_flags(job.limits, "--max_seq_len")])
    return (
        f"Not built. On a machine with {job.gpu.title} and TensorRT-LLM up to 1.2 (say the container {CONTAINER}): "
        f"{finishing_command(job.name)}",
        f"What that runs, for a machine without qtk, in this directory: {command}",
        _NEWER,
    )


def check_engines(directory: Path, split: Split) -> str:
    """The version that wrote the engines of every rank. MachineError where trtllm-build left less than it said."""
    missing = [
        name
        for name in (f"rank{rank}.engine" for rank in range(split.ranks))
        if not (directory / name).is_file() or not (directory / name).stat().st_size
    ]
    try:
        version = str(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("version", "unknown"))
    except (OSError, ValueError, AttributeError):
        missing.append("config.json")
        version = ""
    if missing:
        raise MachineError(f"{TOOL} ended without an error but left no {', '.join(missing)}. Nothing was kept.")
    return version


def _split(job: BuildJob | FinishJob) -> Split:
    return Split(job.options.tp, job.options.pp)


def _require_tool(gpu: GpuProfile) -> str:
    if gpus() and (reasons := build_reasons(gpu)):
        raise MachineError(f"{TOOL} builds for the GPU that it runs on: {reasons[0]}. --prepare-only builds nothing.")
    tool = find_tool(TOOL)
    if tool is None:
        try:
            found = importlib.metadata.version("tensorrt-llm")
            state = f"TensorRT-LLM {found} is installed without it. {_NEWER}"
        except importlib.metadata.PackageNotFoundError:
            state = "TensorRT-LLM up to 1.2 brings it."
        raise MachineError(
            f"The tensorrt-llm backend needs {TOOL} on PATH, and it is not there. {state} "
            "--prepare-only writes the checkpoint and says which command to run where."
        )
    return tool
