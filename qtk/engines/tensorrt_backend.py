"""The `tensorrt` backend: TensorRT-RTX compiles the portable graph for a GPU that need not be there.

The graph is written in fp16, or bf16 where asked, by pipeline stages that the build machine's memory can compile, each
compiled in a process of its own (tensorrt_compile.py). `tensorrt-full` is the same with NVIDIA's full TensorRT, which needs
the GPU.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from qtk.checkpoint.writer import require_room
from qtk.engines.backends import BuildJob, option_refusals
from qtk.engines.describe import describe, graph_stage
from qtk.engines.description import EngineDescription, Stage
from qtk.engines.graph import GraphOptions, write_graph
from qtk.engines.linear_plans import table_refusals
from qtk.engines.memory_plan import ModelBytes, memory_plan, model_bytes
from qtk.engines.tensorrt_compile import CompileRequest
from qtk.errors import InputError, MachineError, listing
from qtk.machine import gpus
from qtk.progress import Progress, note
from qtk.quantization.model_weights import LM_HEAD_MODULE
from qtk.targets.table import target

CACHE_STEP = 128
# Positions whose logits one run gives when scoring.
SCORED_POSITIONS = 256
# Measured (docs/benchmarks.md): peak of the compiling process over the bytes of the stage's graph.
PEAK_BASE_BYTES = 600_000_000
PEAK_PER_BYTE = 3.0
# A model is compiled whole where that takes at most this much of the free memory. Else a stage may take half of it, so that
# the build leaves room for what else the machine does, and nearly all only where half is too little for one block.
WHOLE_SHARE = 0.8
STAGE_SHARES = (0.5, 0.9)
# A plan holds its weights and its kernels; the latter are most of a small model's plan.
PLAN_TOLERANCE = 0.25
KERNEL_BYTES = 16 << 20


@dataclass(frozen=True)
class Library:
    """One of the two TensorRT libraries: Python module, distribution, what to say when it is missing."""

    backend: str
    module: str
    distribution: str
    install: str
    needs_gpu: bool


RTX = Library("tensorrt", "tensorrt_rtx", "tensorrt-rtx-cu13", "pip install 'qtk[tensorrt]'", False)
FULL = Library("tensorrt-full", "tensorrt", "tensorrt", "pip install tensorrt", True)


def cache_length(positions: int) -> int:
    """The cache slots that a plan freezes for this many positions."""
    return -(-positions // CACHE_STEP) * CACHE_STEP


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
            scheme.modules if scheme else None,
            job.limits,
            job.gpu,
            cache_length(job.limits.max_positions),
        )
        return reasons + plan.refusals()

    def build(self, job: BuildJob) -> EngineDescription:
        if not job.options.prepare_only:
            self._require_library()
        spec, scheme = job.weights.spec, job.weights.scheme
        sizes = model_bytes(spec, scheme.modules if scheme else None)
        cuts = self._cut(sizes, spec.tie_word_embeddings, job)
        stages = tuple(self._stage(job, number, layers) for number, layers in enumerate(cuts))
        if not job.options.prepare_only:
            check_plan_sizes(stages, sizes, spec.tie_word_embeddings)
        head = 16 if scheme is None or LM_HEAD_MODULE not in scheme.modules else scheme.modules[LM_HEAD_MODULE].bits
        return describe(
            job,
            backend=self.library.backend,
            dtype=_dtype(job),
            lm_head_bits=head,
            stages=stages,
            packages=("onnx", self.library.distribution),
            cache_length=cache_length(job.limits.max_positions),
            built=not job.options.prepare_only,
            notes=self._notes(job),
        )

    def _notes(self, job: BuildJob) -> tuple[str, ...]:
        if job.options.prepare_only:
            return (f"Not built: run `qtk build-engine MODEL -o ENGINE --gpu {job.gpu.name}` without --prepare-only.",)
        untested = "Compiled, never run on a GPU: `qtk accept ENGINE` on the target does that and records it."
        return (untested, job.gpu.advice) if job.gpu.advice else (untested,)

    def _require_library(self) -> None:
        if importlib.util.find_spec(self.library.module) is None:
            raise MachineError(
                f"The {self.library.backend} backend needs the Python module {self.library.module}: "
                f"{self.library.install}. --prepare-only writes everything but the plan."
            )
        if self.library.needs_gpu and not gpus():
            raise MachineError(
                f"The {self.library.backend} backend compiles on the GPU itself and there is none here. --prepare-only "
                "writes everything but the plan; --backend tensorrt compiles without a GPU."
            )

    def _cut(self, sizes: ModelBytes, tied: bool, job: BuildJob) -> list[tuple[int, int]]:
        """The stages: one where the machine can compile the model whole, else as few as fit its memory. MachineError, before
        any work, where memory or disk do not suffice."""
        if job.options.prepare_only:
            return [(0, len(sizes.blocks))]
        available = psutil.virtual_memory().available
        cuts = choose_stages(sizes, tied, available)
        if cuts is None:
            worst = max(stage_bytes(sizes, tied, (i, i + 1)) for i in range(len(sizes.blocks)))
            raise MachineError(
                f"Compiling needs about {(PEAK_BASE_BYTES + PEAK_PER_BYTE * worst) / 1e9:.1f} GB of memory even block by "
                f"block, and {available / 1e9:.1f} GB are available. Build on a larger machine."
            )
        largest = max(stage_bytes(sizes, tied, cut) for cut in cuts)
        # The plans of all stages, and the graph of the one that is being compiled.
        require_room(job.directory, sum(stage_bytes(sizes, tied, cut) for cut in cuts) + largest)
        if len(cuts) > 1 or largest > 5e8:
            note(
                f"{sizes.total / 1e9:.2f} GB of weights, compiled in {len(cuts)} stage(s); the largest needs about "
                f"{(PEAK_BASE_BYTES + PEAK_PER_BYTE * largest) / 1e9:.1f} GB of the {available / 1e9:.1f} GB available."
            )
        return cuts

    def _stage(self, job: BuildJob, number: int, layers: tuple[int, int]) -> Stage:
        name = f"stage{number}"
        options = GraphOptions(_dtype(job), cache_length(job.limits.max_positions), 16, layers)
        graph = write_graph(job.weights, job.directory, options, name=name, on_block=job.on_block)
        if job.options.prepare_only:
            return graph_stage(graph, layers)
        self._compile(job, graph)
        stage = graph_stage(graph, layers, f"{name}.plan", cache_length(job.limits.max_positions))
        graph.unlink()
        graph.with_name(graph.name + ".data").unlink()
        return stage

    def _compile(self, job: BuildJob, graph: Path) -> None:
        limits = job.limits
        tokens = (1, 1, limits.max_input_len)
        wanted = min(SCORED_POSITIONS, limits.max_input_len)
        request = CompileRequest(
            library=self.library.module,
            graph=graph,
            plan=graph.with_suffix(".plan"),
            layers=graph.with_suffix(".layers.json"),
            compute_capability=str(job.gpu.compute_capability),
            frozen={"cache": cache_length(limits.max_positions)},
            ranges={"batch": (1, 1, limits.max_batch), "tokens": tokens, "wanted": (1, 1, wanted)},
        )
        facts = run_compiler(request, graph.with_suffix(".log"))
        graph.with_suffix(".build.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


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


def check_plan_sizes(stages: tuple[Stage, ...], sizes: ModelBytes, tied: bool) -> None:
    """MachineError unless every plan is as large as its weights at their stored width, within PLAN_TOLERANCE.

    A compiler that widened 4-bit weights to fp16 would make a plan almost four times as large.
    """
    wrong = []
    for stage in stages:
        expected = stage_bytes(sizes, tied, stage.layers)
        most = expected * (1 + PLAN_TOLERANCE) + KERNEL_BYTES
        if not expected * (1 - PLAN_TOLERANCE) <= stage.bytes <= most:
            wrong.append(f"{stage.file}: {stage.bytes / 1e6:.1f} MB for {expected / 1e6:.1f} MB of weights")
    if wrong:
        raise MachineError(
            f"TensorRT did not keep the weights at their width:\n{listing(wrong)}\nAnother version of it may."
        )


def run_compiler(request: CompileRequest, log: Path) -> dict[str, object]:
    """Runs the compiling process, shows its progress, keeps its messages in `log`. Returns seconds and peak memory.

    MachineError when it was killed for want of memory, InputError with TensorRT's reasons when it refused the graph.
    """
    path = request.graph.with_suffix(".request.json")
    path.write_text(request.model_dump_json(), encoding="utf-8")
    facts: dict[str, object] = {}
    with open(log, "w", encoding="utf-8") as messages, Progress("tensorrt", None, "steps") as progress:
        process = subprocess.Popen(
            [sys.executable, "-m", "qtk.engines.tensorrt_compile", str(path)],
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
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
    if code == -9:
        raise MachineError(f"The compiler of {request.graph.name} was killed, most likely for want of memory.")
    if code or facts.pop("event", None) != "done":
        tail = log.read_text(encoding="utf-8").strip().splitlines()[-12:]
        raise InputError(f"TensorRT could not compile {request.graph.name} (exit code {code}):\n{listing(tail)}")
    return facts
