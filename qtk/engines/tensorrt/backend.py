"""Builds engines with TensorRT: TensorRT-RTX compiles the portable graph for a GPU that need not be in the machine.

The graph is written in fp16, or bf16 on request, by pipeline stages that the build machine's memory can compile, each
compiled in a process of its own (worker.py). Full TensorRT does the same, but only on the GPU itself.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qtk.checkpoint.writer import require_room
from qtk.engines.backends import option_refusals, table_refusals
from qtk.engines.description import EngineDescription, EngineLimits, Stage, finishing_command
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.memory import ModelBytes, model_bytes
from qtk.engines.onnx.decoder import GraphOptions, write_graph
from qtk.engines.onnx.stage import graph_stage
from qtk.engines.target_machine import build_reasons, gpu_environment
from qtk.engines.tensorrt.compiler import run_compiler
from qtk.engines.tensorrt.library import SCORED_POSITIONS
from qtk.engines.tensorrt.stages import check_plan_sizes, choose_stages, peak_bytes, require_memory, table_bytes
from qtk.engines.tensorrt.worker import CompileRequest
from qtk.engines.weight_refusals import weight_refusals
from qtk.errors import MachineError
from qtk.machine import available_memory
from qtk.models.spec import LM_HEAD_MODULE
from qtk.sizes import size_text
from qtk.targets.gpu import GpuProfile
from qtk.targets.runtimes import Dependency, Runtime

Compiler = Callable[[CompileRequest, Mapping[str, str]], dict[str, object]]


@dataclass(frozen=True)
class CompiledStage:
    """One pipeline stage, and the version of the library that compiled it; None where it was only prepared."""

    stage: Stage
    version: str | None


class TensorRtBackend:
    """Builds for one of NVIDIA's two TensorRT libraries, the one that the runtime's record names.

    compiler: compiles one graph and returns facts of it, the library's version among them. choose: the stages for a model's
    bytes and the available memory. memory: the bytes that are available. Tests put others in their place.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        compiler: Compiler = run_compiler,
        choose: Callable[[ModelBytes, int], list[tuple[int, int]] | None] = choose_stages,
        memory: Callable[[], int] = available_memory,
    ) -> None:
        assert runtime.engine is not None
        self.runtime = runtime
        self._compiler, self._choose, self._memory = compiler, choose, memory
        self.library: Dependency = runtime.engine.to_build[0]
        self.built_on_gpu = runtime.engine.built_on_gpu

    def refusals(self, request: EngineRequest) -> list[str]:
        reasons = option_refusals(
            request.options, ("float16", "bfloat16"), ("16",), "TensorRT's attention, cache and dequantization work"
        )
        return reasons + table_refusals(self.runtime, request)

    def weight_refusals(self, job: BuildJob) -> list[str]:
        return weight_refusals(self.runtime, job.gpu.sm, job.weights)

    def build(self, job: BuildJob) -> EngineDescription:
        prepare = job.options.prepare_only
        if not prepare:
            self._require_library(job.gpu)
        sizes = model_bytes(job.spec, job.scheme)
        cuts = self._cut(sizes, job)
        compiled = [self._stage(job, number, layers) for number, layers in enumerate(cuts)]
        stages = tuple(part.stage for part in compiled)
        if not prepare:
            tables = table_bytes(job.spec, job.limits.cache_slots)
            check_plan_sizes([(stage, sizes.stage(stage.layers) + tables) for stage in stages])
        return job.describe(
            backend=self.runtime.name,
            dtype=_dtype(job),
            lm_head_bits=job.scheme.of(LM_HEAD_MODULE).bits,
            stages=stages,
            packages=("onnx", self.library.name),
            versions={} if prepare else {self.library.name: str(compiled[-1].version)},
            cache_length=job.limits.cache_slots,
            built=not prepare,
            notes=self._prepared_notes(job) if prepare else _built_notes(job.gpu),
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        """Compiles the graphs of a prepared directory, each as it was cut there."""
        self._require_library(job.gpu)
        before = job.description
        require_memory(before.stages, max(stage.bytes for stage in before.stages), self._memory())
        require_room(job.directory, sum(stage.bytes for stage in before.stages))
        versions, stages = dict(before.versions), []
        for stage in before.stages:
            plan = job.directory / Path(stage.file).with_suffix(".plan").name
            versions[self.library.name] = self._compile(job.prepared / stage.file, plan, before.limits, job.gpu)
            stages.append(graph_stage(job.prepared / stage.file, stage.layers, plan, before.cache_length))
        check_plan_sizes([(plan, graph.bytes) for plan, graph in zip(stages, before.stages, strict=True)])
        changes = {"stages": tuple(stages), "versions": versions, "built": True, "notes": _built_notes(job.gpu)}
        return before.model_copy(update=changes)

    def _prepared_notes(self, job: BuildJob) -> tuple[str, ...]:
        where = f"a machine with {job.gpu.title} and TensorRT" if self.built_on_gpu else "a machine with TensorRT-RTX"
        return (
            f"Not built. On {where} ({self.library.install}): {finishing_command(job.name)}",
            f"The graphs are plain ONNX; the length of the cache must be set to {job.limits.cache_slots}.",
        )

    def _require_library(self, gpu: GpuProfile) -> None:
        if importlib.util.find_spec(self.library.module) is None:
            raise MachineError(
                f"The {self.runtime.name} backend needs the Python module {self.library.module}: "
                f"{self.library.install}. --prepare-only writes everything but the plan."
            )
        if self.built_on_gpu and (reasons := build_reasons(gpu)):
            raise MachineError(
                f"The {self.runtime.name} backend compiles on the GPU itself: {reasons[0]}. --prepare-only "
                "writes everything but the plan; --backend tensorrt compiles without a GPU."
            )

    def _cut(self, sizes: ModelBytes, job: BuildJob) -> list[tuple[int, int]]:
        """The stages: one where the machine can compile the model whole, else as few as fit its memory. MachineError, before any
        work, where memory or disk do not suffice."""
        available = self._memory()
        cuts = self._choose(sizes, available)
        if job.options.prepare_only:  # cut as for this machine, because the machine that finishes may not be larger
            return cuts or [(layer, layer + 1) for layer in range(len(sizes.blocks))]
        if cuts is None:
            worst = max(sizes.stage((layer, layer + 1)) for layer in range(len(sizes.blocks)))
            raise MachineError(
                f"Compiling needs about {size_text(peak_bytes(worst))} of memory even block by "
                f"block, and {size_text(available)} are available. Build on a larger machine."
            )
        largest = max(sizes.stage(cut) for cut in cuts)
        # The plans of all stages, and the graph of the one that is being compiled.
        require_room(job.directory, sum(sizes.stage(cut) for cut in cuts) + largest)
        require_memory(cuts, largest, available)
        return cuts

    def _stage(self, job: BuildJob, number: int, layers: tuple[int, int]) -> CompiledStage:
        options = GraphOptions(_dtype(job), job.limits.cache_slots, 16, layers)
        graph = write_graph(job.weights, job.directory, options, name=f"stage{number}", on_block=job.on_block)
        if job.options.prepare_only:
            return CompiledStage(graph_stage(graph, layers), None)
        plan = graph.with_suffix(".plan")
        version = self._compile(graph, plan, job.limits, job.gpu)
        stage = graph_stage(graph, layers, plan, job.limits.cache_slots)
        graph.unlink()
        graph.with_name(graph.name + ".data").unlink()
        return CompiledStage(stage, version)

    def _compile(self, graph: Path, plan: Path, limits: EngineLimits, gpu: GpuProfile) -> str:
        """Compiles a graph into `plan`, its log and facts beside it. Returns the version of the library that did it."""
        request = CompileRequest(
            library=self.library.module,
            graph=graph,
            plan=plan,
            layers=plan.with_suffix(".layers.json"),
            compute_capability=str(gpu.compute_capability),
            frozen={"cache": limits.cache_slots},
            ranges={
                "batch": (1, 1, limits.max_batch),
                "tokens": (1, 1, limits.max_input_len),
                "wanted": (1, 1, min(SCORED_POSITIONS, limits.max_input_len)),
            },
        )
        facts = self._compiler(request, gpu_environment(gpu) if self.built_on_gpu else {})
        plan.with_suffix(".build.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return str(facts["version"])


def _built_notes(gpu: GpuProfile) -> tuple[str, ...]:
    untested = "Compiled, never run on a GPU: `qtk accept ENGINE` on the target does that and records it."
    return (untested, gpu.advice) if gpu.advice else (untested,)


def _dtype(job: BuildJob) -> torch.dtype:
    return torch.bfloat16 if job.options.dtype == "bfloat16" else torch.float16
