"""The memory table and the bound on speed, as `qtk plan` and `qtk build-engine` print them."""

from __future__ import annotations

from rich.console import Console

from qtk.cli.output import table
from qtk.engines.description import MemoryTable
from qtk.sizes import gpu_size_text


def show_memory(console: Console, title: str, memory: MemoryTable) -> None:
    """Prints the table, and the bound where the GPU's bandwidth is known."""
    rows = [(part.name, gpu_size_text(part.bytes), part.how) for part in memory.parts]
    rows.append(("needed", gpu_size_text(memory.needed_bytes), ""))
    if memory.available_bytes is not None:
        rows.append((memory.gpu, gpu_size_text(memory.available_bytes), "fits" if memory.fits else "does not fit"))
    console.print(table(title, ("part", "memory", ""), rows))
    if memory.decode_bound_tokens_per_s is not None:
        bound = f"No decoder is faster than {memory.decode_bound_tokens_per_s:.1f} tokens/s a row here"
        console.print(f"{bound}: {memory.bound_of}.")
