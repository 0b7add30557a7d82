"""GPU profiles: what each GPU is, from gpus/*.yaml. The machine's processor is the profile "cpu"."""

from __future__ import annotations

import difflib
import functools

from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError
from qtk.shipped import read_yaml, shipped_directory, shipped_names

CPU = "cpu"
_ROOM = "gpus"


class GpuProfile(BaseModel):
    """One GPU. Memory in GiB as sold, bandwidth in 10**9 bytes/s, fp16 in 10**12 dense tensor-core operations/s.

    The profile "cpu" has no figures of its own: those fields are None there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    compute_capability: str | None = Field(None, pattern=r"^\d+\.\d$")
    memory_gib: float | None = Field(None, gt=0)
    ecc_in_memory: bool = False
    bandwidth_gb_s: float | None = Field(None, gt=0)
    fp16_tflops: float | None = Field(None, gt=0)
    backends: tuple[str, ...]
    advice: str = ""
    sources: tuple[str, ...]

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    @property
    def sm(self) -> int | None:
        """The compute capability as TensorRT and compilers write it: 86 for 8.6."""
        return None if self.compute_capability is None else int(self.compute_capability.replace(".", ""))

    @property
    def memory_bytes(self) -> int | None:
        """What programs can use: memory as sold, less the sixteenth that error correction takes on GDDR."""
        if self.memory_gib is None:
            return None
        total = int(self.memory_gib * 2**30)
        return total * 15 // 16 if self.ecc_in_memory else total

    @property
    def default_backend(self) -> str:
        """What `--backend auto` means here."""
        return "onnxruntime" if self.is_cpu else "tensorrt"


def gpu_names() -> list[str]:
    """The names that `--gpu` takes, sorted."""
    return shipped_names(_ROOM)


@functools.cache
def gpu_profile(name: str) -> GpuProfile:
    """The profile called `name` (as listed by `qtk gpus`), whatever its case. InputError lists the closest names."""
    wanted = name.strip().lower()
    known = gpu_names()
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"GPU {name!r} is not known.{hint} qtk knows {', '.join(known)} (see `qtk gpus`).")
    return read_yaml(shipped_directory(_ROOM) / f"{wanted}.yaml", GpuProfile, "GPU profile", name=wanted)


def gpu_profiles() -> list[GpuProfile]:
    """Every shipped profile, by name."""
    return [gpu_profile(name) for name in gpu_names()]
