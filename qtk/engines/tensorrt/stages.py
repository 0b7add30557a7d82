"""Cuts a model into the pipeline stages that this machine's memory can compile, and checks the plans that come out."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from qtk.engines.description import Stage
from qtk.engines.memory import FLOAT_BYTES, ModelBytes
from qtk.errors import MachineError, listing
from qtk.models.spec import ModelSpec
from qtk.progress import note
from qtk.sizes import size_text
from qtk.wording import counted

# Measured (docs/benchmarks.md): peak of the compiling process over the bytes of the stage's graph.
PEAK_BASE_BYTES = 600_000_000
PEAK_PER_BYTE = 3.0
# A model is compiled whole where that takes at most this much of the free memory. Else a stage may take half of it, which
# leaves room for other programs, and nearly all of it only where half is too little for one block.
WHOLE_SHARE = 0.8
STAGE_SHARES = (0.5, 0.9)
# A plan holds its weights and its kernels. In a small model's plan the kernels are the larger part, so they are allowed for.
PLAN_TOLERANCE = 0.25
SMALL_BYTES = 64_000_000
KERNEL_BYTES = 16 << 20


def choose_stages(sizes: ModelBytes, available: int) -> list[tuple[int, int]] | None:
    """The stages that a machine with `available` bytes of memory compiles; None where not even one block fits."""
    whole = (0, len(sizes.blocks))
    if sizes.stage(whole) <= _graph_bound(available * WHOLE_SHARE):
        return [whole]
    tries = (cut_stages(sizes, _graph_bound(available * share)) for share in STAGE_SHARES)
    return next((cuts for cuts in tries if cuts), None)


def _graph_bound(memory: float) -> int:
    """Bytes of the largest graph that compiles in this much memory."""
    return max(0, int((memory - PEAK_BASE_BYTES) / PEAK_PER_BYTE))


def cut_stages(sizes: ModelBytes, most: int) -> list[tuple[int, int]] | None:
    """The fewest stages of consecutive blocks of at most `most` bytes each; None when a single block exceeds it."""
    layers, cuts, first = len(sizes.blocks), [], 0
    while first < layers:
        last = first
        while last < layers and sizes.stage((first, last + 1)) <= most:
            last += 1
        if last == first:
            return None
        cuts.append((first, last))
        first = last
    return cuts


def table_bytes(spec: ModelSpec, positions: int) -> int:
    """Bytes of the cos and sin tables, which every stage's graph holds."""
    return 2 * positions * (spec.head_dim // 2) * FLOAT_BYTES


def peak_bytes(graph_bytes: int) -> float:
    """Bytes of memory that compiling such a graph takes at its peak, as measured."""
    return PEAK_BASE_BYTES + PEAK_PER_BYTE * graph_bytes


def require_memory(stages: Sized, largest: int, available: int) -> None:
    """Writes to stderr how much memory the build needs. MachineError where less is available."""
    needed = peak_bytes(largest)
    need = f"Compiling in {counted(len(stages), 'stage')} needs about {size_text(needed)} of memory"
    if needed > available:
        raise MachineError(
            f"{need}, and {size_text(available)} are available. Build from the model itself, which cuts it for this "
            "machine, or on a larger one."
        )
    note(f"{need}; {size_text(available)} are available.")


def check_plan_sizes(plans: Iterable[tuple[Stage, int]]) -> None:
    """MachineError unless every plan is as large as the bytes given with it, those of its weights at their stored width,
    within PLAN_TOLERANCE.

    A compiler that widened 4-bit weights to fp16 would make a plan almost four times as large.
    """
    wrong_sizes = []
    for stage, expected in plans:
        kernels = KERNEL_BYTES if expected < SMALL_BYTES else 0
        if not expected * (1 - PLAN_TOLERANCE) <= stage.bytes <= expected * (1 + PLAN_TOLERANCE) + kernels:
            wrong_sizes.append(f"{stage.file}: {size_text(stage.bytes)} for {size_text(expected)} of weights")
    if wrong_sizes:
        raise MachineError(
            f"TensorRT did not keep the weights at their width:\n{listing(wrong_sizes)}\nAnother version of it may."
        )
