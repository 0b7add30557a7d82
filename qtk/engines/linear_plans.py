"""A model's linears as the target table asks about them, from its spec and how each is stored."""

from __future__ import annotations

from collections.abc import Mapping

from qtk.models.spec import ModelSpec
from qtk.quantization.formats.base import LinearScheme
from qtk.quantization.model_weights import LM_HEAD_MODULE, ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.targets.table import LinearPlan, Target, refusals


def linear_plans(spec: ModelSpec, schemes: Mapping[str, LinearScheme] | None) -> dict[str, LinearPlan]:
    """Full module name -> plan, of the linears that are quantized (a head of its own included)."""
    sizes = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
    sizes[LM_HEAD_MODULE] = (spec.vocab_size, spec.hidden_size)
    return {
        name: LinearPlan(*sizes[name], scheme.bits, scheme.group_size, scheme.symmetric)
        for name, scheme in (schemes or {}).items()
        if scheme.bits < 16
    }


def table_refusals(row: Target, sm: int | None, weights: ModelWeights) -> list[str]:
    """Why the target table refuses a model; scales are looked at only where their sign decides."""
    plans = linear_plans(weights.spec, weights.scheme.modules if weights.scheme else None)
    if not plans:
        return []
    negative = not row.negative_scales and any(_has_negative_scale(weights, name) for name in plans)
    return refusals(row, sm, plans, negative_scales=negative)


def _has_negative_scale(weights: ModelWeights, module: str) -> bool:
    weight = weights.linear(module)
    return isinstance(weight, QuantizedLinear) and bool((weight.scales < 0).any())
