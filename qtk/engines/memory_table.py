"""The table of an engine's memory on its GPU, as `qtk plan` shows it and engine.json keeps it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

# What the driver's context and the runtime's libraries hold on a GPU before any engine is loaded, with room for
# fragmentation. Not measured here (no GPU): a figure commonly seen, rounded up.
RESERVE_BYTES = 1 << 30


class MemoryPart(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(frozen=True)
    name: str
    bytes: int
    how: str


class MemoryPlan(BaseModel):
    """The table and its verdict. Bounds in tokens a second a row, None without a bandwidth (the cpu profile)."""

    model_config = ConfigDict(frozen=True)
    gpu: str
    available_bytes: int | None
    parts: list[MemoryPart]
    needed_bytes: int
    fits: bool
    decode_bound_tokens_per_s: float | None
    bound_of: str

    def reasons(self) -> list[str]:
        """Why not; empty when it fits."""
        if self.fits or self.available_bytes is None:
            return []
        return [
            f"{self.needed_bytes / 2**30:.1f} GiB are needed, {self.gpu} has {self.available_bytes / 2**30:.1f} GiB"
        ]

    def refusals(self, ranks: int = 1) -> list[str]:
        """Why `ranks` such GPUs together cannot hold it, followed by the table; empty when they can."""
        available, needed = self.available_bytes, self.needed_bytes + (ranks - 1) * RESERVE_BYTES
        if available is None or needed <= available * ranks:
            return []
        has = f"{self.gpu} has" if ranks == 1 else f"{ranks} x {self.gpu} have"
        rows = [f"{part.name}: {part.bytes / 2**30:.2f} GiB ({part.how})" for part in self.parts]
        return [f"{needed / 2**30:.1f} GiB are needed, {has} {available * ranks / 2**30:.1f} GiB", *rows]
