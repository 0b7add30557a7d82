"""How a checkpoint stores its linears: the bits, the group size and the kind of codes of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qtk.models.spec import ModelSpec

FLOAT_BITS = 16


@dataclass(frozen=True)
class LinearScheme:
    """How one linear is stored: bits (16: left in float), group size (-1: a whole row is one group), symmetric or not.

    signed_scales: whether symmetric scales may be negative. It steers the search and is not part of what a container says.
    """

    bits: int
    group_size: int
    symmetric: bool
    signed_scales: bool = field(default=True, compare=False)

    @property
    def quantized(self) -> bool:
        return self.bits < FLOAT_BITS


FLOAT = LinearScheme(FLOAT_BITS, -1, True)


@dataclass(frozen=True)
class QuantizationScheme:
    """How a whole checkpoint is stored. `modules` holds full module names ("model.layers.0.mlp.up_proj", "lm_head")
    of every linear; those that differ from `default` are overrides.
    """

    default: LinearScheme
    modules: Mapping[str, LinearScheme]

    @property
    def quantized(self) -> bool:
        """Whether any linear is quantized."""
        return any(scheme.quantized for scheme in self.modules.values())

    def of(self, module: str) -> LinearScheme:
        """The scheme of a module by full name; FLOAT for what is not a linear of its own (a norm, a tied lm_head)."""
        return self.modules.get(module, FLOAT)

    def quantized_modules(self) -> dict[str, LinearScheme]:
        """The linears that are not left in float, by full name."""
        return {name: scheme for name, scheme in self.modules.items() if scheme.quantized}

    def overrides(self) -> dict[str, LinearScheme]:
        """The linears that are stored in another way than `default`, by full name."""
        return {name: scheme for name, scheme in self.modules.items() if scheme != self.default}


def float_scheme(spec: ModelSpec) -> QuantizationScheme:
    """The scheme of a model that is not quantized."""
    return QuantizationScheme(FLOAT, dict.fromkeys(spec.module_shapes(), FLOAT))
