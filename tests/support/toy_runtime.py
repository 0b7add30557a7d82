"""A runtime that counts: each token is followed by the next number. All that a new runtime needs, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qtk.engines.description import EngineDescription, Stage
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.sessions.executor import Forward
from qtk.targets.runtimes import Dependency, EngineParts, Runtime

TOOL = Dependency("toy-counter", "program", "counts for the toy engines", by_hand="carve one")
TOY = Runtime(
    "toy",
    "the toy runtime",
    ("gptq",),
    bits=(4,),
    group_sizes=(32,),
    asymmetric=False,
    signed_scales=True,
    evidence="the tests",
    min_sm=80,
    max_sm=86,
    engine=EngineParts(
        "support.toy_runtime:ToyBackend",
        executor="support.toy_runtime:ToyExecutor",
        to_build=(TOOL,),
        to_run=(TOOL,),
        built_on_gpu=True,
        experimental=True,
    ),
)


class ToyBackend:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def refusals(self, request: EngineRequest) -> list[str]:
        return ["the toy cannot count that far"] if request.limits.max_positions > 200 else []

    def weight_refusals(self, job: BuildJob) -> list[str]:
        return []

    def build(self, job: BuildJob) -> EngineDescription:
        (job.directory / "toy.txt").write_text("1 2 3")
        stage = Stage(file="toy.txt", layers=(0, job.spec.num_layers), inputs=(), outputs=(), bytes=5)
        return job.describe(
            backend=self.runtime.name, dtype=torch.float16, lm_head_bits=16, stages=(stage,), packages=()
        )

    def finish(self, job: FinishJob) -> EngineDescription:
        raise NotImplementedError


class ToyExecutor:
    chunk_tokens = 64
    chunk_logits = 64
    compiled_before: bool | None = None

    def __init__(self, directory: Path, description: EngineDescription, threads: int | None) -> None:
        self._vocab_size = description.vocab_size

    def memory_bytes(self) -> int | None:
        return None

    def start(self, batch: int) -> None:
        pass

    def reserve(self, positions: int) -> int:
        return positions

    def keep_rows(self, rows: Sequence[int]) -> bool:
        return False

    def run(self, forward: Forward) -> np.ndarray:
        tokens = np.take_along_axis(forward.input_ids, forward.logits_positions[..., 0], axis=1)
        return np.eye(self._vocab_size, dtype=np.float32)[(tokens + 1) % self._vocab_size]

    def close(self) -> None:
        pass
