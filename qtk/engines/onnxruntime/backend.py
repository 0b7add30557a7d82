"""Builds engines for a processor: the portable graph as ONNX Runtime runs it."""

from __future__ import annotations

import torch

from qtk.engines.backends import option_refusals, table_refusals
from qtk.engines.description import EngineDescription
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.onnx.decoder import HEAD_BLOCK, GraphOptions, write_graph
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
        dtype = torch.float32 if job.options.dtype in ("auto", "float32") else torch.float16
        bits = head_bits(job)
        graph = GraphOptions(dtype, job.limits.max_positions, bits)
        path = write_graph(job.weights, job.directory, graph, on_block=job.on_block)
        return job.describe(
            backend=self.runtime.name,
            dtype=dtype,
            lm_head_bits=bits,
            accuracy_level=job.options.accuracy_level,
            stages=(graph_stage(path, (0, job.spec.num_layers)),),
            packages=("onnx", "onnxruntime"),
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        raise InputError(f"{job.prepared}: engines for a processor are never only prepared. Build it from the model.")


def head_bits(request: EngineRequest) -> int:
    """Bits of the output head. auto: 8 where that buys speed at a small, measured cost (see docs/benchmarks.md), that is
    for an INT4 model with 8-bit activations; a float model stays float, and at level 0 an 8-bit head is slow."""
    if request.options.lm_head_bits != "auto":
        return int(request.options.lm_head_bits)
    worth_it = request.scheme.quantized and request.options.accuracy_level == 4
    return 8 if worth_it and request.spec.hidden_size % HEAD_BLOCK == 0 else 16
