"""Names of the graph's inputs that the writer and the generation loop must agree on. Apart from both, so that the loop does
not load ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtk.models.spec import ModelSpec

MASK = "attention_mask"


def mask_name(window: int | None) -> str:
    """The mask input that a layer with this sliding window reads."""
    return MASK if window is None else f"{MASK}_window_{window}"


def stage_windows(spec: ModelSpec, layers: tuple[int, int]) -> list[int | None]:
    """The different windows among blocks first .. last - 1, in order of first use. Each has a mask input of its own."""
    return list(dict.fromkeys(spec.windows[layers[0] : layers[1]]))
