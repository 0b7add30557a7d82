"""Whether this machine is the one that an engine was built for: its GPU, and the library with the version that built it."""

from __future__ import annotations

import os

from qtk.engines.description import EngineDescription
from qtk.machine import Gpu, gpus
from qtk.targets.gpu import GpuProfile


def gpu_reasons(description: EngineDescription) -> list[str]:
    """Why no GPU here runs the engine; empty where one of its compute capability is present."""
    if _matching(description.compute_capability):
        return []
    return [f"it was compiled for a GPU of SM {description.compute_capability}; found here: {found_gpus()}"]


def build_reasons(gpu: GpuProfile) -> list[str]:
    """Why no GPU here is the one to build for: what builds on the GPU itself builds for that one only."""
    if _matching(gpu.compute_capability):
        return []
    return [f"{gpu.title} is SM {gpu.compute_capability}; found here: {found_gpus()}"]


def found_gpus() -> str:
    """The GPUs here, for a sentence."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ and len(visible_gpus()) < len(gpus())
    found = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for _, gpu in visible_gpus()) or "none"
    return f"{found} (CUDA_VISIBLE_DEVICES hides others)" if hidden else found


def visible_gpus() -> list[tuple[int, Gpu]]:
    """(number in the order of the bus, GPU) of those that CUDA_VISIBLE_DEVICES leaves; names instead of numbers leave all."""
    numbered, asked = list(enumerate(gpus())), os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None or asked.startswith(("GPU-", "MIG-")):
        return numbered
    numbers = []
    for word in asked.split(","):
        if not word.strip().isdigit():
            break  # as CUDA reads it: what follows the first that is no number is not seen
        numbers.append(int(word))
    return [numbered[number] for number in numbers if number < len(numbered)]


def gpu_environment(gpu: GpuProfile) -> dict[str, str]:
    """What a tool that takes the first GPU must be started with, so that this is the one to build for."""
    matching = _matching(gpu.compute_capability)
    if not matching or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(matching[0])}


def _matching(compute_capability: str | None) -> list[int]:
    return [number for number, gpu in visible_gpus() if gpu.compute_capability == compute_capability]


def library_reasons(library: str, present: str | None, needed: str | None, install: str) -> list[str]:
    """Why the library here does not run the engine. `needed`: the version that built it, None where not recorded."""
    if present is None:
        return [f"{library} is not installed: {install}"]
    if needed is not None and present != needed:
        return [f"it was compiled by {library} {needed}, here is {present}: build it again"]
    return []
