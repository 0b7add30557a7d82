"""GPU profiles: the figures of each GPU, from gpus/*.yaml. The machine's processor is the profile "cpu"."""

from __future__ import annotations

import difflib
import functools

from pydantic import BaseModel, ConfigDict, Field, computed_field

from qtk.errors import InputError
from qtk.shipped import read_yaml, shipped_directory, shipped_names
from qtk.targets.runtimes import RUNTIMES

CPU = "cpu"
_ROOM = "gpus"


class GpuProfile(BaseModel):
    """One GPU. Memory in GiB as sold, bandwidth in 10**9 bytes/s, fp16 in 10**12 dense tensor-core operations/s.

    The profile "cpu" has no figures of its own: those fields are None there. `backends` are the runtimes that qtk builds
    engines for and that run on this GPU; `advice` tells a user what to do where the usual backend does not work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    compute_capability: str | None = Field(None, pattern=r"^\d+\.\d$")
    memory_gib: float | None = Field(None, gt=0)
    ecc_in_memory: bool = False
    bandwidth_gb_s: float | None = Field(None, gt=0)
    fp16_tflops: float | None = Field(None, gt=0)
    advice: str = ""
    sources: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(
            record.name
            for record in RUNTIMES.values()
            if record.engine and (record.min_sm is None if self.sm is None else record.runs_on(self.sm))
        )

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    @property
    def sm(self) -> int | None:
        """The compute capability as TensorRT and compilers write it: 86 for 8.6."""
        return None if self.compute_capability is None else int(self.compute_capability.replace(".", ""))

    @property
    def memory_bytes(self) -> int | None:
        """The memory that programs can use: as sold, less the sixteenth that error correction takes on GDDR."""
        if self.memory_gib is None:
            return None
        total = int(self.memory_gib * 2**30)
        return total * 15 // 16 if self.ecc_in_memory else total

    @property
    def default_backend(self) -> str:
        """What `--backend auto` means: the first of `backends`. Where a GPU has none, the first runtime for GPUs, whose refusal
        says why."""
        first = next(record.name for record in RUNTIMES.values() if record.engine and record.min_sm is not None)
        return next(iter(self.backends), first)


def gpu_names() -> list[str]:
    """The values of `--gpu`, sorted."""
    return shipped_names(_ROOM)


@functools.cache
def gpu_profile(name: str) -> GpuProfile:
    """The profile called `name`, in upper or lower case. InputError lists the closest names."""
    wanted = name.strip().lower()
    known = gpu_names()
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"GPU {name!r} is not known.{hint} qtk knows {', '.join(known)} (see `qtk gpus`).")
    return read_yaml(shipped_directory(_ROOM) / f"{wanted}.yaml", GpuProfile, "GPU profile", name=wanted)


def gpu_profiles() -> list[GpuProfile]:
    """Every shipped profile, sorted by name."""
    return [gpu_profile(name) for name in gpu_names()]
