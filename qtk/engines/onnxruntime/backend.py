"""Builds engines for a processor: the portable graph as ONNX Runtime runs it."""

from __future__ import annotations

import torch

from qtk.engines.backends import option_refusals, table_refusals
from qtk.engines.description import EngineDescription
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.memory import HEAD_BLOCK
from qtk.engines.onnx.decoder import GraphOptions, write_graph
from qtk.engines.onnx.stage import graph_stage
from qtk.engines.weight_refusals import weight_refusals
from qtk.errors import InputError
from qtk.targets.runtimes import Runtime


class OnnxRuntimeBackend:
    """Writes the graph; ONNX Runtime loads it as it is."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def refusals(self, request: EngineRequest) -> list[str]:
        reasons = option_refusals(
            request.options, ("float32", "float16"), ("8", "16"), "ONNX Runtime computes on a processor"
        )
        reasons += table_refusals(self.runtime, request)
        if request.options.lm_head_bits == "8" and request.spec.hidden_size % HEAD_BLOCK:
            reasons.append(
                f"--lm-head-bits 8 works in blocks of {HEAD_BLOCK}, which does not divide the hidden size "
                f"{request.spec.hidden_size}"
            )
        return reasons

    def weight_refusals(self, job: BuildJob) -> list[str]:
        return weight_refusals(self.runtime, job.gpu.sm, job.weights)

    def build(self, job: BuildJob) -> EngineDescription:
        dtype = torch.float32 if job.dtype == "float32" else torch.float16
        graph = GraphOptions(dtype, job.limits.max_positions, job.head_bits)
        path = write_graph(job.weights, job.directory, graph, on_block=job.on_block)
        return job.describe(
            backend=self.runtime.name,
            dtype=dtype,
            lm_head_bits=job.head_bits,
            accuracy_level=job.options.accuracy_level,
            stages=(graph_stage(path, (0, job.spec.num_layers)),),
            packages=("onnx", "onnxruntime"),
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        raise InputError(f"{job.prepared}: engines for a processor are never only prepared. Build it from the model.")
