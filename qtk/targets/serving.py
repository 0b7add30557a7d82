"""Which runtimes load a quantized checkpoint, and the line that serves it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from qtk.targets.runtimes import RUNTIMES, Runtime

# What transformers needs to load a container; None where it does not load it at all.
_FOR_TRANSFORMERS: dict[str, str | None] = {
    "gptq": "gptqmodel and optimum",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "gguf": "gguf",
    "modelopt": None,
}


@dataclass(frozen=True)
class StoredAs:
    """How a checkpoint is stored, as far as runtimes differ about it. file: of a container that is one file."""

    container: str
    bits: int
    group_size: int
    symmetric: bool
    signed_scales: bool
    file: str = ""


def loading_runtimes(stored: StoredAs) -> list[Runtime]:
    """The runtimes that take a checkpoint stored so: those that serve checkpoints themselves first, then those that prefer
    this container, of these the ones for several GPUs."""
    taking = [
        runtime
        for runtime in RUNTIMES.values()
        if runtime.reads(stored.container, symmetric=stored.symmetric)
        and stored.bits in runtime.bits
        and stored.group_size in runtime.group_sizes
        and (runtime.asymmetric or stored.symmetric)
        and (runtime.signed_scales or not (stored.symmetric and stored.signed_scales))
    ]
    return sorted(taking, key=lambda runtime: _order(runtime, stored.container))


def _order(runtime: Runtime, container: str) -> tuple[bool, int, bool]:
    several = runtime.engine is not None and runtime.engine.several_gpus
    return not runtime.serve, runtime.containers.index(container), not several


def serving_line(stored: StoredAs, place: str, *, gpu: str | None = None, backend: str = "auto") -> str | None:
    """The command that serves the checkpoint in the directory `place`, or makes the engine that does; None where no runtime
    takes it. gpu, backend: those it was quantized for."""
    taking = loading_runtimes(stored)
    wanted = [runtime for runtime in taking if runtime.name == backend] or taking
    if not wanted:
        return None
    runtime = wanted[0]
    if runtime.serve:
        return runtime.serve.format(model=shlex.quote(place), file=shlex.quote(f"{place}/{stored.file}"))
    chosen = f" --gpu {gpu or ('cpu' if runtime.min_sm is None else 'GPU')}"
    return f"qtk build-engine {shlex.quote(place)} -o {shlex.quote(f'{place}-engine')}{chosen} --backend {runtime.name}"


def transformers_sentence(container: str) -> str:
    """Whether transformers loads the container, and what it needs for that."""
    needs = _FOR_TRANSFORMERS.get(container)
    if needs is None:
        return "transformers does not load this container."
    return f"transformers loads it where {needs} {'are' if ' and ' in needs else 'is'} installed."
