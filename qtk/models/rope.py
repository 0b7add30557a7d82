"""Rotary position embedding: its settings in both spellings of config.json, and its tables of cosines and sines.

torch is imported when a table is computed, so that reading a config stays light.

Source: RoFormer (Su et al. 2021); linear scaling (kaiokendev 2023, Chen et al. 2023); Llama 3.1's frequency bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtk.errors import InputError

if TYPE_CHECKING:
    import torch

# The kinds of scaling, and what each must be given.
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


_LARGEST = 1e15  # of every setting; the largest theta in use is 1e7


@dataclass(frozen=True)
class RopeSettings:
    """theta, and how the frequencies are scaled. The llama3 fields are 0 for the other kinds."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_positions: int = 0

    @staticmethod
    def from_config(config: Mapping[str, Any], max_positions: int) -> RopeSettings:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`. InputError for an unknown kind,
        a value that is missing or not a positive number, and settings that differ from layer to layer."""
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise InputError("config.json: rope settings must be an object.")
        if any(isinstance(value, Mapping) for value in scaling.values()):
            raise InputError("config.json: rope settings that differ by the kind of layer are not known to qtk.")
        kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
        if kind not in _NEEDED:
            raise InputError(f"config.json: rope type {kind!r} is not known; qtk knows {', '.join(_NEEDED)}.")
        absent = [name for name in _NEEDED[kind] if scaling.get(name) is None]
        if absent:
            raise InputError(f"config.json: rope type {kind!r} needs {', '.join(absent)}.")
        if (scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
            raise InputError("config.json: partial_rotary_factor is set; qtk rotates all channels of a head.")
        scaled, bands = kind != "default", kind == "llama3"
        theta = positive_number(scaling, "rope_theta", positive_number(config, "rope_theta", 10000.0))
        original = positive_number(scaling, "original_max_position_embeddings", max_positions)
        return RopeSettings(
            theta=theta,
            kind=kind,
            factor=positive_number(scaling, "factor", 1.0) if scaled else 1.0,
            low_freq_factor=positive_number(scaling, "low_freq_factor", 1.0) if bands else 0.0,
            high_freq_factor=positive_number(scaling, "high_freq_factor", 4.0) if bands else 0.0,
            original_max_positions=int(original) if bands else 0,
        )

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """[head_dim / 2] float32: the angle per position of each pair of channels, scaling applied."""
        import torch

        inv_freq = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        if self.kind == "linear":
            return inv_freq / self.factor
        if self.kind == "llama3":
            return self._llama3(inv_freq)
        return inv_freq

    def _llama3(self, inv_freq: torch.Tensor) -> torch.Tensor:
        import torch

        wavelength = 2 * math.pi / inv_freq
        low = self.original_max_positions / self.low_freq_factor
        high = self.original_max_positions / self.high_freq_factor
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * inv_freq / self.factor + smooth * inv_freq
        scaled = torch.where(wavelength > low, inv_freq / self.factor, inv_freq)
        return torch.where((wavelength <= low) & (wavelength >= high), blended, scaled)

    def tables(self, head_dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [positions, head_dim / 2] float32, for positions 0.."""
        import torch

        angles = torch.outer(torch.arange(positions, dtype=torch.float32), self.inverse_frequencies(head_dim))
        return angles.cos(), angles.sin()


def with_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with its rope settings in the spelling of transformers 5 (`rope_parameters`) and in the one before
    (`rope_theta`, `rope_scaling`). A reader that does not know the spelling it finds takes theta 10000 without a word.

    A spelling that is there stays as it is; a config without either gets none.
    """
    spelled = dict(config)
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping) and parameters:
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        if "rope_theta" in parameters:
            spelled.setdefault("rope_theta", parameters["rope_theta"])
        if scaling.get("rope_type", "default") != "default":
            spelled.setdefault("rope_scaling", scaling)
    elif config.get("rope_theta") is not None:
        written = config.get("rope_scaling")
        old = dict(written) if isinstance(written, Mapping) else {}
        kind = old.get("rope_type") or old.get("type") or "default"
        spelled["rope_parameters"] = {**old, "rope_type": kind, "rope_theta": config["rope_theta"]}
    return spelled


def positive_number(values: Mapping[str, Any], name: str, default: float) -> float:
    """A field that must be a positive number, `default` where it is absent or null. InputError otherwise."""
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        raise InputError(f"config.json: {name} is {value!r}, and must be a positive number up to {_LARGEST:g}.")
    return float(value)
