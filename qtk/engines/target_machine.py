"""Whether this machine can run or build an engine: whether it has the GPU, and the library in the version that is needed."""

from __future__ import annotations

import os

from qtk.engines.description import EngineDescription
from qtk.machine import Gpu, gpus
from qtk.targets.gpu import GpuProfile


def gpu_reasons(description: EngineDescription) -> list[str]:
    """Why no GPU here runs the engine; empty where a GPU of its compute capability is present."""
    if _matching(description.compute_capability):
        return []
    return [f"it was compiled for a GPU of SM {description.compute_capability}; GPUs here: {_gpu_names()}"]


def build_reasons(gpu: GpuProfile) -> list[str]:
    """Why no GPU here is the GPU to build for: a builder that runs on the GPU itself builds for that GPU only."""
    if _matching(gpu.compute_capability):
        return []
    return [f"{gpu.title} is SM {gpu.compute_capability}; GPUs here: {_gpu_names()}"]


def _gpu_names() -> str:
    """The GPUs of this machine, for a sentence."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ and len(visible_gpus()) < len(gpus())
    names = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for _, gpu in visible_gpus()) or "none"
    return f"{names} (CUDA_VISIBLE_DEVICES hides others)" if hidden else names


def visible_gpus() -> list[tuple[int, Gpu]]:
    """(number in the order of the bus, GPU) of the GPUs that CUDA_VISIBLE_DEVICES leaves: all where it holds names."""
    numbered, visible = list(enumerate(gpus())), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or visible.startswith(("GPU-", "MIG-")):
        return numbered
    numbers = []
    for word in visible.split(","):
        if not word.strip().isdigit():
            break  # as CUDA reads it: everything from the first entry that is not a number on is ignored
        numbers.append(int(word))
    return [numbered[number] for number in numbers if number < len(numbered)]


def gpu_environment(gpu: GpuProfile) -> dict[str, str]:
    """The environment variables that make the GPU to build for the first one, which the tools take."""
    matching = _matching(gpu.compute_capability)
    if not matching or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(matching[0])}


def _matching(compute_capability: str | None) -> list[int]:
    return [number for number, gpu in visible_gpus() if gpu.compute_capability == compute_capability]


def library_reasons(library: str, present: str | None, needed: str | None, install: str) -> list[str]:
    """Why the library here does not run the engine. `needed`: the version that built it, None where none is recorded."""
    if present is None:
        return [f"{library} is not installed: {install}"]
    if needed is not None and present != needed:
        return [f"it was compiled by {library} {needed}, and this machine has {present}: build it again"]
    return []
