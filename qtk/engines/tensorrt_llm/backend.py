"""Builds for TensorRT-LLM: the checkpoint of its engine backend, and its trtllm-build where that is installed.

Engines exist up to TensorRT-LLM 1.2. From 1.3 on it runs a Hugging Face checkpoint in ModelOpt's layout directly:
`qtk quantize --container modelopt` writes that, and nothing is built.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path

from qtk.engines.backends import option_refusals, table_refusals
from qtk.engines.description import EngineDescription, EngineLimits, Stage, finishing_command
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.options import BuildOptions
from qtk.engines.outside_tool import find_tool, run_tool, tool_help
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.engines.tensorrt_llm.checkpoint import ARCHITECTURES, DTYPE, Split, write_checkpoint
from qtk.engines.weight_refusals import weight_refusals
from qtk.errors import MachineError
from qtk.machine import gpus
from qtk.models.spec import Linear, ModelSpec
from qtk.targets.gpu import GpuProfile
from qtk.targets.refusals import LinearPlan
from qtk.targets.runtimes import Runtime

TOOL = "trtllm-build"
CONTAINER = "NVIDIA's tensorrt-llm/release, tag 1.1.0"
_NEWER = "TensorRT-LLM 1.3 and later have no engines: they run what `qtk quantize --container modelopt` writes."
_MOST_TOKENS = 8192  # trtllm-build's own bound on the tokens of one step


class TensorRtLlmBackend:
    """Writes checkpoints, which the tests check with a reader of their documentation, and runs trtllm-build. Nobody has run
    such an engine for qtk yet."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def refusals(self, request: EngineRequest) -> list[str]:
        spec, scheme, split = request.spec, request.scheme, _split(request.options)
        reasons = option_refusals(request.options, ("float16",), ("16",), "qtk writes TensorRT-LLM checkpoints")
        reasons += _model_refusals(spec, request.limits, split)
        if not scheme.quantized:
            return reasons
        linears = {
            name: LinearPlan(
                _outputs(linear, spec, split), linear.in_features, stored.bits, stored.group_size, stored.symmetric
            )
            for name, linear in spec.all_linears()
            for stored in (scheme.of(name),)
        }
        reasons += table_refusals(self.runtime, request, linears)
        if floats := [name for name, plan in linears.items() if plan.bits == 16]:
            others = f" and {len(floats) - 1} more" if len(floats) > 1 else ""
            reasons.append(
                f"{floats[0]}{others} in float; all linears of the blocks must be INT4: quantize without --override"
            )
        if len({plan.group_size for plan in linears.values()}) > 1:
            reasons.append(
                "several group sizes; a TensorRT-LLM checkpoint has one: quantize without --override 'NAME=group:N'"
            )
        else:
            reasons += _padding_refusals(spec, next(iter(linears.values())).group_size, split)
        return reasons

    def weight_refusals(self, job: BuildJob) -> list[str]:
        return weight_refusals(self.runtime, job.gpu.sm, job.weights)

    def build(self, job: BuildJob) -> EngineDescription:
        tool = None if job.options.prepare_only else _require_tool(job.gpu)
        flags = [] if tool is None else build_flags(job.limits, tool_help(tool))
        checkpoint = job.directory / "checkpoint"
        checkpoint.mkdir()
        write_checkpoint(job.weights, checkpoint, _split(job.options), job.on_block)
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
        return job.describe(
            backend=self.runtime.name,
            dtype=DTYPE,
            lm_head_bits=16,
            stages=_stages(job, pattern, job.spec.num_layers),
            packages=("tensorrt-llm",),
            versions={} if version is None else {"tensorrt-llm": version},
            built=built,
            notes=notes,
        )


def _run(tool: str, flags: list[str], job: BuildJob | FinishJob) -> str:
    """Runs the builder in the directory. Returns the version of TensorRT-LLM that built the engines."""
    run_tool([tool, *flags], job.directory, environment=gpu_environment(job.gpu))
    return check_engines(job.directory / "engine", _split(job.options))


def _stages(job: BuildJob | FinishJob, pattern: str, layers: int) -> tuple[Stage, ...]:
    """One stage for each rank, whose file `pattern` names."""
    split, stages = _split(job.options), []
    for rank in range(split.ranks):
        held = split.layers(rank // split.tensor_parallel, layers)
        file = pattern.format(rank)
        size = (job.directory / file).stat().st_size
        stages.append(Stage(file=file, layers=(held.start, held.stop), inputs=(), outputs=(), bytes=size))
    return tuple(stages)


def built_notes(version: str) -> tuple[str, ...]:
    return (f"Built by {TOOL} of TensorRT-LLM {version}, and only that version can run it; never run by qtk.",)


def _outputs(linear: Linear, spec: ModelSpec, split: Split) -> int:
    """Output rows over all ranks: more than the linear has where ranks outnumber key/value heads and hold copies."""
    if linear.name.endswith(("k_proj", "v_proj")):
        return len(split.kv_heads(0, spec.num_kv_heads)) * spec.head_dim * split.tensor_parallel
    return linear.out_features


def _model_refusals(spec: ModelSpec, limits: EngineLimits, split: Split) -> list[str]:
    """Why a model cannot become such a checkpoint, however it is stored; empty when it can."""
    reasons = _split_refusals(spec, split)
    if spec.architecture not in ARCHITECTURES:
        reasons.append(f"{spec.architecture}: qtk writes TensorRT-LLM checkpoints of {', '.join(ARCHITECTURES)} only")
    windows = [window for window in spec.windows if window is not None]
    if windows and limits.max_positions > min(windows):
        reasons.append(
            f"{limits.max_positions} positions: TensorRT-LLM checkpoints cannot express this model's sliding attention "
            f"window of {min(windows)} tokens, so prompt and output must stay within it"
        )
    return reasons


def _split_refusals(spec: ModelSpec, split: Split) -> list[str]:
    """Why a model cannot be split in this way over ranks; empty when it can."""
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


def _padding_refusals(spec: ModelSpec, group_size: int, split: Split) -> list[str]:
    """TensorRT-LLM's loader pads the hidden size to a multiple of max(64, group size) times the ranks, the file's and the
    model's alike, and then finds that the shapes differ (seen with the loaders of 0.12 to 0.17)."""
    multiple = max(64, group_size) * split.tensor_parallel
    if spec.hidden_size % multiple == 0:
        return []
    return [
        f"hidden size {spec.hidden_size} is not a multiple of {multiple} (group size {group_size} or 64, times --tp "
        f"{split.tensor_parallel}), which TensorRT-LLM's own loader then refuses; use a smaller --tp or group size"
    ]


def build_flags(limits: EngineLimits, known: str) -> list[str]:
    """trtllm-build's flags with these limits. `known`: the text of its --help, because versions name the length differently."""
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
    spec, tp = job.spec, job.options.tp
    limit = (
        (
            f"There, --tp {tp} is above this model's {spec.num_kv_heads} key/value heads: a limit of TensorRT-LLM itself.",
        )
        if tp > spec.num_kv_heads
        else ()
    )
    command = shlex.join([TOOL, *build_flags(job.limits, "--max_seq_len")])
    return (
        f"Not built. On a machine with {job.gpu.title} and TensorRT-LLM up to 1.2 (for example the container {CONTAINER}): "
        f"{finishing_command(job.name)}",
        f"On a machine without qtk, in this directory: {command}",
        _NEWER,
        *limit,
    )


def check_engines(directory: Path, split: Split) -> str:
    """The version that wrote the engines of every rank. MachineError where an engine or its config.json is missing."""
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


def _split(options: BuildOptions) -> Split:
    return Split(options.tp, options.pp)


def _require_tool(gpu: GpuProfile) -> str:
    if gpus() and (reasons := build_reasons(gpu)):
        raise MachineError(f"{TOOL} builds for the GPU that it runs on: {reasons[0]}. --prepare-only builds nothing.")
    tool = find_tool(TOOL)
    if tool is None:
        try:
            version = importlib.metadata.version("tensorrt-llm")
            state = f"TensorRT-LLM {version} is installed without it. {_NEWER}"
        except importlib.metadata.PackageNotFoundError:
            state = "TensorRT-LLM up to 1.2 brings it."
        raise MachineError(
            f"The tensorrt-llm backend needs {TOOL} on PATH, where it is missing. {state} "
            "--prepare-only writes the checkpoint and says which command to run where."
        )
    return tool
