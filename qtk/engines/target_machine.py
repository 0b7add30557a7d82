"""Whether this machine is the one that an engine was built for: its GPU, and the library with the version that built it."""

from __future__ import annotations

from qtk.engines.description import EngineDescription
from qtk.machine import gpus


def gpu_reasons(description: EngineDescription) -> list[str]:
    """Why no GPU here runs the engine; empty where one of its compute capability is present."""
    here = gpus()
    if any(gpu.compute_capability == description.compute_capability for gpu in here):
        return []
    found = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in here) or "none"
    return [f"it was compiled for a GPU of SM {description.compute_capability}; found here: {found}"]


def library_reasons(library: str, present: str | None, needed: str | None, install: str) -> list[str]:
    """Why the library here does not run the engine. `needed`: the version that built it, None where not recorded."""
    if present is None:
        return [f"{library} is not installed: {install}"]
    if needed is not None and present != needed:
        return [f"it was compiled by {library} {needed}, here is {present}: build it again"]
    return []
