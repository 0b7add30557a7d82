"""GPU profiles: the figures of each GPU, from gpus/*.yaml or a file of the user's own. The machine's processor is the
profile "cpu"."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from qtk.errors import InputError, listing
from qtk.shipped import read_yaml, shipped_directory, shipped_names
from qtk.targets.runtimes import RUNTIMES

CPU = "cpu"
_ROOM = "gpus"
_FILE_ENDINGS = (".yaml", ".yml")
_NEEDED = ("compute_capability", "memory_gib", "bandwidth_gb_s")


class GpuProfile(BaseModel):
    """One GPU. Memory in GiB as sold, bandwidth in 10**9 bytes/s, fp16 in 10**12 dense tensor-core operations/s.

    The profile "cpu" has no figures of its own: those fields are None there. `backends` are the runtimes that qtk builds
    engines for and that run on this GPU; `advice` tells a user what to do where the usual backend does not work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    title: str
    compute_capability: str | None = None
    memory_gib: float | None = Field(None, gt=0)
    ecc_in_memory: bool = False
    bandwidth_gb_s: float | None = Field(None, gt=0)
    fp16_tflops: float | None = Field(None, gt=0)
    advice: str = ""
    sources: tuple[str, ...] = ()

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _two_numbers(cls, value: object) -> object:
        """8.6 without quotes is a number in YAML."""
        text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if text is not None and not (isinstance(text, str) and re.fullmatch(r"\d{1,2}\.\d", text)):
            raise ValueError('write it as NVIDIA does, for example "8.6"')
        return text

    @computed_field  # type: ignore[prop-decorator]
    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(
            record.name
            for record in RUNTIMES.values()
            if record.engine and (record.min_sm is None if self.sm is None else record.runs_on(self.sm))
        )

    @property
    def figures(self) -> dict[str, Any]:
        """What the profile's file holds, and its name: `GpuProfile(**figures)` is the profile again."""
        return self.model_dump(mode="json", exclude={"backends"})

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


def is_profile_file(text: str) -> bool:
    """Whether a value of `--gpu` is the path of a profile, not the name of one that ships."""
    return Path(text).suffix in _FILE_ENDINGS


def gpu_profile(text: str) -> GpuProfile:
    """The profile called `text`, in upper or lower case, or the one in the YAML file of that path.

    InputError lists the closest names, or every field of the file that is missing or wrong.
    """
    return _own_profile(Path(text)) if is_profile_file(text) else _shipped_profile(text.strip().lower())


@functools.cache
def _shipped_profile(name: str) -> GpuProfile:
    known = gpu_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(
            f"GPU {name!r} is not known.{hint} qtk knows {', '.join(known)} (see `qtk gpus`), and takes a profile of your "
            "own: --gpu FILE.yaml."
        )
    return read_yaml(shipped_directory(_ROOM) / f"{name}.yaml", GpuProfile, "GPU profile", name=name)


def _own_profile(path: Path) -> GpuProfile:
    """A profile that does not ship; its name is the file's. A name that ships is refused, so that a name in an engine.json
    or a manifest means one GPU."""
    profile = read_yaml(path, GpuProfile, "GPU profile", name=path.stem)
    if profile.name in gpu_names():
        raise InputError(f"{path}: {profile.name} is the name of a profile that comes with qtk. Rename the file.")
    if missing := [f"{name}: Field required" for name in _NEEDED if getattr(profile, name) is None]:
        raise InputError(f"{path} is not a valid GPU profile:\n{listing(missing)}")
    return profile


def gpu_profiles() -> list[GpuProfile]:
    """Every shipped profile, sorted by name."""
    return [gpu_profile(name) for name in gpu_names()]
