"""The `tensorrt` backend: TensorRT-RTX compiles the portable graph for a GPU that need not be there.

The graph is written in fp16, or bf16 where asked, by pipeline stages that the build machine's memory can compile, each
compiled in a process of its own (tensorrt_compile.py). `tensorrt-full` is the same with NVIDIA's full TensorRT, which needs
the GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path

import torch

from qtk.checkpoint.writer import require_room
from qtk.engines.backends import BuildJob, FinishJob, option_refusals
from qtk.engines.describe import describe, graph_stage
from qtk.engines.description import EngineDescription, Limits, Stage, finishing_command
from qtk.engines.linear_plans import table_refusals
from qtk.engines.memory_plan import FLOAT_BYTES, ModelBytes, cache_length, memory_plan, model_bytes
from qtk.engines.onnx.decoder import GraphOptions, write_graph
from qtk.engines.outside_tool import keep_log
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.engines.tensorrt.compile import LACKS, CompileRequest
from qtk.engines.tensorrt.library import RTX, SCORED_POSITIONS, Library
from qtk.errors import InputError, MachineError, listing
from qtk.machine import available_memory
from qtk.models.spec import LM_HEAD_MODULE, ModelSpec
from qtk.progress import Progress, note
from qtk.targets.gpu import GpuProfile
from qtk.targets.table import target

# Measured (docs/benchmarks.md): peak of the compiling process over the bytes of the stage's graph.
PEAK_BASE_BYTES = 600_000_000
PEAK_PER_BYTE = 3.0
# A model is compiled whole where that takes at most this much of the free memory. Else a stage may take half of it, so that
# the build leaves room for what else the machine does, and nearly all only where half is too little for one block.
WHOLE_SHARE = 0.8
STAGE_SHARES = (0.5, 0.9)
# A plan holds its weights and its kernels. Of a small model's plan the kernels are the most, so there they are allowed for.
PLAN_TOLERANCE = 0.25
SMALL_BYTES = 64_000_000
KERNEL_BYTES = 16 << 20


class Backend:
    """Backends "tensorrt" and "tensorrt-full"."""

    def __init__(self, library: Library = RTX) -> None:
        self.library = library

    def refusals(self, job: BuildJob) -> list[str]:
        weights, options, scheme = job.weights, job.options, job.weights.scheme
        reasons = option_refusals(
            options, ("float16", "bfloat16"), ("16",), "TensorRT's attention, cache and dequantization work"
        )
        reasons += table_refusals(target(self.library.backend), job.gpu.sm, weights)
        plan = memory_plan(
            weights.spec,
            scheme,
            job.limits,
            job.gpu,
            cache_length(job.limits.max_positions),
        )
        return reasons + plan.refusals()

    def build(self, job: BuildJob) -> EngineDescription:
        prepare = job.options.prepare_only
        if not prepare:
            self._require_library(job.gpu)
        spec, scheme = job.weights.spec, job.weights.scheme
        sizes = model_bytes(spec, scheme)
        cuts = self._cut(sizes, spec.tie_word_embeddings, job)
        versions: dict[str, str] = {}
        stages = tuple(self._stage(job, number, layers, versions) for number, layers in enumerate(cuts))
        if not prepare:
            tables = table_bytes(spec, cache_length(job.limits.max_positions))
            check_plan_sizes([(s, stage_bytes(sizes, spec.tie_word_embeddings, s.layers) + tables) for s in stages])
        return describe(
            job,
            backend=self.library.backend,
            dtype=_dtype(job),
            lm_head_bits=scheme.of(LM_HEAD_MODULE).bits,
            stages=stages,
            packages=("onnx", self.library.distribution),
            versions=versions,
            cache_length=cache_length(job.limits.max_positions),
            built=not prepare,
            notes=self._prepared_notes(job) if prepare else self._built_notes(job.gpu),
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        """Compiles the graphs of a prepared directory, each as it was cut there."""
        self._require_library(job.gpu)
        before = job.description
        say_memory(before.stages, max(stage.bytes for stage in before.stages), available_memory())
        require_room(job.directory, sum(stage.bytes for stage in before.stages))
        versions, stages = dict(before.versions), []
        for stage in before.stages:
            plan = job.directory / Path(stage.file).with_suffix(".plan").name
            versions[self.library.distribution] = self._compile(job.prepared / stage.file, plan, before.limits, job.gpu)
            stages.append(graph_stage(job.prepared / stage.file, stage.layers, plan, before.cache_length))
        check_plan_sizes([(made, stage.bytes) for made, stage in zip(stages, before.stages, strict=True)])
        changes = {"stages": tuple(stages), "versions": versions, "built": True, "notes": self._built_notes(job.gpu)}
        return before.model_copy(update=changes)

    def _prepared_notes(self, job: BuildJob) -> tuple[str, ...]:
        where = (
            f"a machine with {job.gpu.title} and TensorRT" if self.library.needs_gpu else "a machine with TensorRT-RTX"
        )
        return (
            f"Not built. On {where} ({self.library.install}): {finishing_command(job.name)}",
            f"The graphs are plain ONNX, with the cache's length to be set to {cache_length(job.limits.max_positions)}.",
        )

    def _built_notes(self, gpu: GpuProfile) -> tuple[str, ...]:
        untested = "Compiled, never run on a GPU: `qtk accept ENGINE` on the target does that and records it."
        return (untested, gpu.advice) if gpu.advice else (untested,)

    def _require_library(self, gpu: GpuProfile) -> None:
        if importlib.util.find_spec(self.library.module) is None:
            raise MachineError(
                f"The {self.library.backend} backend needs the Python module {self.library.module}: "
                f"{self.library.install}. --prepare-only writes everything but the plan."
            )
        if self.library.needs_gpu and (reasons := build_reasons(gpu)):
            raise MachineError(
                f"The {self.library.backend} backend compiles on the GPU itself: {reasons[0]}. --prepare-only "
                "writes everything but the plan; --backend tensorrt compiles without a GPU."
            )

    def _cut(self, sizes: ModelBytes, tied: bool, job: BuildJob) -> list[tuple[int, int]]:
        """The stages: one where the machine can compile the model whole, else as few as fit its memory. MachineError, before
        any work, where memory or disk do not suffice."""
        available = available_memory()
        cuts = choose_stages(sizes, tied, available)
        if job.options.prepare_only:  # cut as for this machine, as the one that finishes may be no larger
            return cuts or [(layer, layer + 1) for layer in range(len(sizes.blocks))]
        if cuts is None:
            worst = max(stage_bytes(sizes, tied, (i, i + 1)) for i in range(len(sizes.blocks)))
            raise MachineError(
                f"Compiling needs about {_peak(worst) / 1e9:.1f} GB of memory even block by "
                f"block, and {available / 1e9:.1f} GB are available. Build on a larger machine."
            )
        largest = max(stage_bytes(sizes, tied, cut) for cut in cuts)
        # The plans of all stages, and the graph of the one that is being compiled.
        require_room(job.directory, sum(stage_bytes(sizes, tied, cut) for cut in cuts) + largest)
        say_memory(cuts, largest, available)
        return cuts

    def _stage(self, job: BuildJob, number: int, layers: tuple[int, int], versions: dict[str, str]) -> Stage:
        name = f"stage{number}"
        slots = cache_length(job.limits.max_positions)
        options = GraphOptions(_dtype(job), slots, 16, layers)
        graph = write_graph(job.weights, job.directory, options, name=name, on_block=job.on_block)
        if job.options.prepare_only:
            return graph_stage(graph, layers)
        plan = graph.with_suffix(".plan")
        versions[self.library.distribution] = self._compile(graph, plan, job.limits, job.gpu)
        stage = graph_stage(graph, layers, plan, slots)
        graph.unlink()
        graph.with_name(graph.name + ".data").unlink()
        return stage

    def _compile(self, graph: Path, plan: Path, limits: Limits, gpu: GpuProfile) -> str:
        """Compiles a graph into `plan`, its log and facts beside it. Returns the version of the library that did it."""
        request = CompileRequest(
            library=self.library.module,
            graph=graph,
            plan=plan,
            layers=plan.with_suffix(".layers.json"),
            compute_capability=str(gpu.compute_capability),
            frozen={"cache": cache_length(limits.max_positions)},
            ranges={
                "batch": (1, 1, limits.max_batch),
                "tokens": (1, 1, limits.max_input_len),
                "wanted": (1, 1, min(SCORED_POSITIONS, limits.max_input_len)),
            },
        )
        environment = gpu_environment(gpu) if self.library.needs_gpu else {}
        facts = run_compiler(request, plan.with_suffix(".log"), environment)
        plan.with_suffix(".build.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return str(facts["version"])


def _dtype(job: BuildJob) -> torch.dtype:
    return torch.bfloat16 if job.options.dtype == "bfloat16" else torch.float16


def stage_bytes(sizes: ModelBytes, tied: bool, layers: tuple[int, int]) -> int:
    """Bytes of one stage's graph: its blocks, the embedding in the first, the head (a tied one again) in the last."""
    total = sum(sizes.blocks[layers[0] : layers[1]])
    first, last = layers[0] == 0, layers[1] == len(sizes.blocks)
    total += sizes.embedding if first or (last and tied) else 0
    return total + (sizes.head if last else 0)


def choose_stages(sizes: ModelBytes, tied: bool, available: int) -> list[tuple[int, int]] | None:
    """The stages that a machine with `available` bytes of memory compiles; None where not even one block fits."""
    whole = (0, len(sizes.blocks))
    if stage_bytes(sizes, tied, whole) <= _graph_bound(available * WHOLE_SHARE):
        return [whole]
    tries = (cut_stages(sizes, tied, _graph_bound(available * share)) for share in STAGE_SHARES)
    return next((cuts for cuts in tries if cuts), None)


def _graph_bound(memory: float) -> int:
    """Bytes of the largest graph that compiles in this much memory."""
    return max(0, int((memory - PEAK_BASE_BYTES) / PEAK_PER_BYTE))


def cut_stages(sizes: ModelBytes, tied: bool, most: int) -> list[tuple[int, int]] | None:
    """The fewest stages of consecutive blocks of at most `most` bytes each; None when a single block exceeds it."""
    layers, cuts, first = len(sizes.blocks), [], 0
    while first < layers:
        last = first
        while last < layers and stage_bytes(sizes, tied, (first, last + 1)) <= most:
            last += 1
        if last == first:
            return None
        cuts.append((first, last))
        first = last
    return cuts


def table_bytes(spec: ModelSpec, positions: int) -> int:
    """Bytes of the cos and sin tables, which every stage's graph holds."""
    return 2 * positions * (spec.head_dim // 2) * FLOAT_BYTES


def say_memory(stages: Sized, largest: int, available: int) -> None:
    """Says on stderr what the build needs. MachineError where that is not there."""
    needed = _peak(largest)
    said = f"Compiling in {len(stages)} stage(s) needs about {needed / 1e9:.1f} GB of memory"
    if needed > available:
        raise MachineError(
            f"{said}, and {available / 1e9:.1f} GB are available. Build from the model itself, which cuts it for this "
            "machine, or on a larger one."
        )
    note(f"{said}; {available / 1e9:.1f} GB are available.")


def _peak(graph_bytes: int) -> float:
    """Bytes of memory that compiling such a graph takes at its peak, as measured."""
    return PEAK_BASE_BYTES + PEAK_PER_BYTE * graph_bytes


def check_plan_sizes(plans: Iterable[tuple[Stage, int]]) -> None:
    """MachineError unless every plan is as large as the bytes given with it, those of its weights at their stored width,
    within PLAN_TOLERANCE.

    A compiler that widened 4-bit weights to fp16 would make a plan almost four times as large.
    """
    wrong = []
    for stage, expected in plans:
        kernels = KERNEL_BYTES if expected < SMALL_BYTES else 0
        if not expected * (1 - PLAN_TOLERANCE) <= stage.bytes <= expected * (1 + PLAN_TOLERANCE) + kernels:
            wrong.append(f"{stage.file}: {stage.bytes / 1e6:.1f} MB for {expected / 1e6:.1f} MB of weights")
    if wrong:
        raise MachineError(
            f"TensorRT did not keep the weights at their width:\n{listing(wrong)}\nAnother version of it may."
        )


def run_compiler(request: CompileRequest, log: Path, environment: Mapping[str, str] | None = None) -> dict[str, object]:
    """Runs the compiling process, shows its progress, keeps its messages in `log`. Returns version, seconds, peak memory.

    MachineError when it was killed, crashed or lacks something, InputError with TensorRT's reasons when it refused the graph;
    the log is kept beside the output directory then.
    """
    path = request.plan.with_suffix(".request.json")
    path.write_text(request.model_dump_json(), encoding="utf-8")
    facts: dict[str, object] = {}
    with open(log, "w", encoding="utf-8") as messages, Progress("tensorrt", None, "steps") as progress:
        process = subprocess.Popen(
            [sys.executable, "-m", "qtk.engines.tensorrt.compile", str(path)],
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith("{"):
                    messages.write(line)
                    continue
                facts = json.loads(line)
                progress.advance(1, f"{request.graph.stem}: {facts.get('name', '')}")
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    path.unlink()
    if code or facts.pop("event", None) != "done":
        raise _failure(request.graph.name, code, log)
    return facts


def _failure(graph: str, code: int, log: Path) -> InputError | MachineError:
    """What a failed compile means: the log's own words decide between want of memory and a crash of the library."""
    text = log.read_text(encoding="utf-8", errors="replace")
    tail = f"Its log is kept as {keep_log(log)}; it ends with:\n{listing(text.strip().splitlines()[-12:])}"
    if code == -signal.SIGKILL or (code < 0 and "bad_alloc" in text):
        return MachineError(f"The compiler of {graph} was killed, most likely for want of memory. {tail}")
    if code < 0:
        return MachineError(f"The compiler of {graph} crashed ({signal.Signals(-code).name}) inside TensorRT. {tail}")
    if code == LACKS:
        return MachineError(f"This machine cannot compile {graph}. {tail}")
    return InputError(f"TensorRT could not compile {graph} (exit code {code}). {tail}")
