"""The `cpu` engine: the portable graph as ONNX Runtime runs it."""

from __future__ import annotations

import torch

from qtk.engines.backends import BuildJob, FinishJob, option_refusals
from qtk.engines.describe import describe, graph_stage
from qtk.engines.description import EngineDescription
from qtk.engines.linear_plans import table_refusals
from qtk.engines.onnx.decoder import HEAD_BLOCK, GraphOptions, write_graph
from qtk.errors import InputError
from qtk.targets.table import target


class Backend:
    """Backend "onnxruntime"."""

    def refusals(self, job: BuildJob) -> list[str]:
        reasons = option_refusals(
            job.options, ("float32", "float16"), ("8", "16"), "ONNX Runtime computes on a processor"
        )
        reasons += table_refusals(target("onnxruntime"), None, job.weights)
        if not job.gpu.is_cpu:
            reasons.append(f"--backend onnxruntime builds for cpu, not for {job.gpu.name}")
        if job.options.lm_head_bits == "8" and job.weights.spec.hidden_size % HEAD_BLOCK:
            reasons.append(
                f"--lm-head-bits 8 works in blocks of {HEAD_BLOCK}, which does not divide the hidden size "
                f"{job.weights.spec.hidden_size}"
            )
        return reasons

    def build(self, job: BuildJob) -> EngineDescription:
        dtype = torch.float32 if job.options.dtype in ("auto", "float32") else torch.float16
        head = head_bits(job)
        path = write_graph(
            job.weights,
            job.directory,
            GraphOptions(dtype, job.limits.max_positions, head),
            on_block=job.on_block,
        )
        return describe(
            job,
            backend="onnxruntime",
            dtype=dtype,
            lm_head_bits=head,
            accuracy_level=job.options.accuracy_level,
            stages=(graph_stage(path, (0, job.weights.spec.num_layers)),),
            packages=("onnx", "onnxruntime"),
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        raise InputError(f"{job.prepared}: engines for the processor are built whole, never prepared. Build it again.")


def head_bits(job: BuildJob) -> int:
    """Bits of the output head. auto: 8 where it buys speed at a small, measured cost (see docs/benchmarks.md), that is
    for an INT4 model with 8-bit activations; a float model stays float, and at level 0 an 8-bit head is slow."""
    asked = job.options.lm_head_bits
    if asked != "auto":
        return int(asked)
    worth = job.weights.quantized and job.options.accuracy_level == 4
    return 8 if worth and job.weights.spec.hidden_size % HEAD_BLOCK == 0 else 16
