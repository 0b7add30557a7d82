"""Names of the graph's inputs that writer and loop must agree on, apart from both so that the loop loads no ONNX."""

from __future__ import annotations

from qtk.models.spec import ModelSpec

MASK = "attention_mask"


def mask_name(window: int | None) -> str:
    """The mask input that a layer with this sliding window reads."""
    return MASK if window is None else f"{MASK}_window_{window}"


def stage_windows(spec: ModelSpec, layers: tuple[int, int]) -> list[int | None]:
    """The different windows among blocks first .. last - 1, in order of first use: one mask input each."""
    return list(dict.fromkeys(spec.windows[layers[0] : layers[1]]))
