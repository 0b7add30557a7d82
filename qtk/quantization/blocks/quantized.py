"""One decoder block: as the float model has it, and as it will be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from qtk.models.spec import Linear, ModelSpec
from qtk.quantization.blocks.streams import StoredWeights, Stream
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import LayerRecord
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme


@dataclass(frozen=True)
class FloatBlock:
    """Block number `layer` of the float model. weights: its tensors as stored, by name below the block's prefix; schemes:
    how each linear will be stored, by the same kind of name."""

    layer: int
    weights: Mapping[str, torch.Tensor]
    schemes: Mapping[str, LinearScheme]

    @staticmethod
    def of(spec: ModelSpec, scheme: QuantizationScheme, layer: int, weights: Mapping[str, torch.Tensor]) -> FloatBlock:
        """The block with its part of the whole model's scheme."""
        prefix = spec.block_prefix(layer)
        return FloatBlock(layer, weights, {linear.name: scheme.of(prefix + linear.name) for linear in spec.linears()})

    @property
    def prefix(self) -> str:
        return ModelSpec.block_prefix(self.layer)

    def quantizable(self, linears: tuple[Linear, ...]) -> list[Linear]:
        """The linears of the block that are quantized."""
        return [linear for linear in linears if self.schemes[linear.name].quantized]


@dataclass(frozen=True)
class QuantizedBlock:
    """One block's quantized linears and the float tensors that changed on the way (norms, biases), both by name below the
    block's prefix, and a record for each linear."""

    linears: Mapping[str, QuantizedLinear] = field(default_factory=dict)
    floats: Mapping[str, torch.Tensor] = field(default_factory=dict)
    records: tuple[LayerRecord, ...] = ()

    def __or__(self, other: QuantizedBlock) -> QuantizedBlock:
        """Both parts as one block."""
        return QuantizedBlock(
            {**self.linears, **other.linears}, {**self.floats, **other.floats}, self.records + other.records
        )

    def weights(self, original: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The whole block in `dtype`, by name, for the forward pass; original: the float block's weights."""
        return dict(StoredWeights(self.stored(original), dtype))

    def stored(self, original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | QuantizedLinear]:
        """The whole block as it is stored, by name; original: the float block's weights."""
        floats = {name: self.floats.get(name, weight) for name, weight in original.items()}
        return {**floats, **{f"{name}.weight": linear for name, linear in self.linears.items()}}


class BlockQuantizer(Protocol):
    """A method under way: it takes the blocks in their order. `streams` are the calibration rows that it carries along,
    which hold each block's outputs once the block is quantized."""

    @property
    def streams(self) -> list[Stream]: ...

    def quantize(self, block: FloatBlock) -> QuantizedBlock: ...
