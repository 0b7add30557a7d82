"""The builders of engines by backend name. Adding one: a file with a class like these, and a line here."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qtk.checkpoint.writer import require_room
from qtk.engines.description import EngineDescription, Limits
from qtk.engines.options import BuildOptions
from qtk.quantization.model_weights import ModelWeights
from qtk.targets.gpu import GpuProfile

# backend -> module under qtk.engines with a class `Backend`; imported when used.
BACKENDS = {
    "onnxruntime": "onnxruntime.backend",
    "tensorrt": "tensorrt.backend",
    "tensorrt-full": "tensorrt.full_backend",
    "tensorrt-edgellm": "edgellm.backend",
    "tensorrt-llm": "tensorrt_llm.backend",
}


@dataclass(frozen=True)
class BuildJob:
    """One engine to build into `directory` (already made; it becomes the engine directory when all went well)."""

    weights: ModelWeights
    directory: Path
    gpu: GpuProfile
    limits: Limits
    options: BuildOptions
    on_block: Callable[[int], None]

    @property
    def name(self) -> str:
        """What the engine directory will be called."""
        return self.directory.name.removesuffix(".partial")


@dataclass(frozen=True)
class FinishJob:
    """A directory of `--prepare-only` to be built into `directory` (already made, with what lies beside the graph in it).
    `options` are those of the preparation, apart from where this machine's tools are."""

    prepared: Path
    description: EngineDescription
    directory: Path
    gpu: GpuProfile
    options: BuildOptions

    def carry(self, *names: str) -> None:
        """Copies these directories of the prepared one, as they are, into the new one. MachineError where the disk is full."""
        require_room(self.directory, sum(path.stat().st_size for name in names for path in self._files(name)))
        for name in names:
            shutil.copytree(self.prepared / name, self.directory / name)

    def _files(self, name: str) -> list[Path]:
        return [path for path in (self.prepared / name).rglob("*") if path.is_file()]


def option_refusals(options: BuildOptions, dtypes: tuple[str, ...], head_bits: tuple[str, ...], why: str) -> list[str]:
    """Why a backend that computes in `dtypes` and holds heads of `head_bits` does not take these options."""
    reasons = []
    if options.dtype not in ("auto", *dtypes):
        reasons.append(f"--dtype {options.dtype}: {why} in {' or '.join(dtypes)}")
    if options.lm_head_bits not in ("auto", *head_bits):
        reasons.append(f"--lm-head-bits {options.lm_head_bits}: {why} with a head of {' or '.join(head_bits)} bits")
    return reasons


class EngineBackend(Protocol):
    """Turns a checkpoint into what one runtime takes."""

    def refusals(self, job: BuildJob) -> list[str]:
        """Every reason why this model cannot become such an engine, before any work; empty when it can."""
        ...

    def build(self, job: BuildJob) -> EngineDescription:
        """Writes the engine's own files into job.directory and describes them.

        MachineError (exit 4) when the machine lacks what the build needs.
        """
        ...

    def finish(self, job: FinishJob) -> EngineDescription:
        """Builds what `build` only prepared. Errors as of `build`."""
        ...


def engine_backend(name: str) -> EngineBackend:
    """The backend called `name`, a key of BACKENDS."""
    backend: EngineBackend = importlib.import_module(f"qtk.engines.{BACKENDS[name]}").Backend()
    return backend
