"""Rotary position embedding: its settings in both spellings of config.json, and its tables of cosines and sines.

Source: RoFormer (Su et al. 2021); linear scaling (kaiokendev 2023, Chen et al. 2023); Llama 3.1's frequency bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qtk.errors import InputError

_KNOWN = ("default", "linear", "llama3")


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
        """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`. InputError for an unknown kind."""
        new = config.get("rope_parameters")
        scaling: Mapping[str, Any] = new or config.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise InputError("config.json: rope settings must be an object.")
        theta = scaling.get("rope_theta", config.get("rope_theta"))
        kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
        if kind not in _KNOWN:
            raise InputError(f"config.json: rope type {kind!r} is not known; qtk knows {', '.join(_KNOWN)}.")
        return RopeSettings(
            theta=float(10000.0 if theta is None else theta),
            kind=kind,
            factor=float(scaling.get("factor", 1.0)) if kind != "default" else 1.0,
            low_freq_factor=float(scaling.get("low_freq_factor", 1.0)) if kind == "llama3" else 0.0,
            high_freq_factor=float(scaling.get("high_freq_factor", 4.0)) if kind == "llama3" else 0.0,
            original_max_positions=int(scaling.get("original_max_position_embeddings") or max_positions)
            if kind == "llama3"
            else 0,
        )

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """[head_dim / 2] float32: the angle per position of each pair of channels, scaling applied."""
        inv_freq = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        if self.kind == "linear":
            return inv_freq / self.factor
        if self.kind == "llama3":
            return self._llama3(inv_freq)
        return inv_freq

    def _llama3(self, inv_freq: torch.Tensor) -> torch.Tensor:
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
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), self.inverse_frequencies(head_dim))
        return angles.cos(), angles.sin()
