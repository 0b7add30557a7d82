"""What a backend is given: the request that `qtk plan` can answer too, the job that builds it, and what a job says of its engine."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import qtk
from qtk.checkpoint.writer import require_room
from qtk.engines.description import EngineDescription, EngineLimits, MemoryTable, Quantization, Stage
from qtk.engines.memory import HEAD_BLOCK, FloatParts, memory_table
from qtk.engines.options import BuildOptions
from qtk.errors import InputError
from qtk.machine import package_versions
from qtk.models.spec import ModelSpec
from qtk.models.tokenizer import TextTokenizer, configured_eos_ids
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.targets.gpu import GpuProfile, is_profile_file
from qtk.targets.refusals import LinearPlan

_DTYPE_NAMES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """The engine that is wanted: of which model, stored how, for which GPU and within which limits."""

    spec: ModelSpec
    scheme: QuantizationScheme
    gpu: GpuProfile
    limits: EngineLimits
    options: BuildOptions

    @property
    def gpus(self) -> int:
        """The number of GPUs that share the model."""
        return self.options.tp * self.options.pp

    @functools.cached_property
    def memory(self) -> MemoryTable:
        """The memory table of the engine on its GPU or processor."""
        return memory_table(self.spec, self.scheme, self.limits, self.gpu, self.floats)

    @property
    def dtype(self) -> str:
        """The type that the engine computes in, "auto" settled: float32 on a processor, float16 on a GPU."""
        if self.options.dtype != "auto":
            return self.options.dtype
        return "float32" if self.gpu.is_cpu else "float16"

    @property
    def floats(self) -> FloatParts:
        """How the engine holds what is not quantized."""
        if not self.gpu.is_cpu:
            return FloatParts(self.dtype)
        head_reads_embedding = self.spec.tie_word_embeddings and self.head_bits == 16
        wide = self.dtype == "float32" and head_reads_embedding
        return FloatParts(self.dtype, 4 if wide else 2, self.head_bits)

    @property
    def head_bits(self) -> int:
        """Bits of a processor engine's output head. auto: 8 where that buys speed at a small, measured cost (see
        docs/benchmarks.md), that is for an INT4 model with 8-bit activations; a float model stays float, and at level 0 an
        8-bit head is slow."""
        if self.options.lm_head_bits != "auto":
            return int(self.options.lm_head_bits)
        worth_it = self.scheme.quantized and self.options.accuracy_level == 4
        return 8 if worth_it and self.spec.hidden_size % HEAD_BLOCK == 0 else 16

    @functools.cached_property
    def linears(self) -> dict[str, LinearPlan]:
        """The quantized linears by full module name (a head of its own included), as the runtimes' records are asked."""
        shapes = self.spec.module_shapes()
        return {
            name: LinearPlan(*shapes[name], linear.bits, linear.group_size, linear.symmetric)
            for name, linear in self.scheme.quantized_modules().items()
        }


@dataclass(frozen=True, kw_only=True)
class BuildJob(EngineRequest):
    """One engine to build into `directory` (it exists already, and becomes the engine directory when all went well).

    on_block is called with each block's number when the block is written.
    """

    weights: ModelWeights
    directory: Path
    on_block: Callable[[int], None]

    @property
    def name(self) -> str:
        """The name that the engine directory will have."""
        return self.directory.name.removesuffix(".partial")

    def describe(
        self,
        *,
        backend: str,
        dtype: torch.dtype,
        lm_head_bits: int,
        stages: tuple[Stage, ...],
        packages: tuple[str, ...],
        versions: Mapping[str, str] | None = None,
        **more: Any,
    ) -> EngineDescription:
        """The description of the engine. `packages`: whose installed versions are recorded, beside `versions`."""
        spec = self.spec
        return EngineDescription(
            architecture=spec.architecture,
            backend=backend,
            gpu=self.gpu.name,
            compute_capability=self.gpu.compute_capability,
            own_gpu=self.gpu.figures if is_profile_file(self.options.gpu) else None,
            dtype=_DTYPE_NAMES[dtype],
            lm_head_bits=lm_head_bits,
            limits=self.limits,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            windows=spec.windows,
            stop_tokens=_stop_tokens(self.weights.checkpoint.path),
            quantization=_quantization(self.weights),
            stages=stages,
            versions={"qtk": qtk.__version__} | package_versions(*packages) | dict(versions or {}),
            **more,
        )


@dataclass(frozen=True)
class FinishJob:
    """A directory of `--prepare-only` to be built into `directory` (it exists already, with the files that lie beside the
    graph). `options` are those of the preparation, except for the places of this machine's tools."""

    prepared: Path
    description: EngineDescription
    directory: Path
    gpu: GpuProfile
    options: BuildOptions

    def carry(self, *names: str) -> None:
        """Copies these directories of the prepared one into the new one. MachineError where the disk is full."""
        require_room(self.directory, sum(path.stat().st_size for name in names for path in self._files(name)))
        for name in names:
            shutil.copytree(self.prepared / name, self.directory / name)

    def _files(self, name: str) -> list[Path]:
        return [path for path in (self.prepared / name).rglob("*") if path.is_file()]


def require_stop_tokens(weights: ModelWeights) -> None:
    """InputError where the model's configuration ends an answer with tokens that the vocabulary does not have: it would never end."""
    path, size = weights.checkpoint.path, weights.spec.vocab_size
    if beyond := [number for number in configured_eos_ids(path) if number >= size]:
        raise InputError(
            f"{path}: eos_token_id names {beyond}, and the vocabulary ends at {size - 1}. Mend generation_config.json or config.json."
        )


def _stop_tokens(model_dir: Path) -> tuple[int, ...]:
    try:
        return TextTokenizer(model_dir).eos_ids
    except InputError:  # a model without a tokenizer still takes token ids
        return configured_eos_ids(model_dir)


def _quantization(weights: ModelWeights) -> Quantization | None:
    if not weights.quantized:
        return None
    default = weights.scheme.default
    return Quantization(
        bits=default.bits, group_size=default.group_size, symmetric=default.symmetric, method=weights.method
    )
