"""A model's linears as the target table asks about them, from its spec and how each is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qtk.models.spec import ModelSpec
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.targets.table import LinearPlan, Target, compressed, refusals


def linear_plans(spec: ModelSpec, scheme: QuantizationScheme) -> dict[str, LinearPlan]:
    """Full module name -> plan, of the linears that are quantized (a head of its own included)."""
    sizes = spec.module_shapes()
    return {
        name: LinearPlan(*sizes[name], linear.bits, linear.group_size, linear.symmetric)
        for name, linear in scheme.quantized_modules().items()
    }


def table_refusals(row: Target, sm: int | None, weights: ModelWeights) -> list[str]:
    """Why the target table refuses a model; scales are looked at only where their sign decides."""
    plans = linear_plans(weights.spec, weights.scheme)
    if not plans:
        return []
    negative = not row.negative_scales and any(_has_negative_scale(weights, name) for name in plans)
    reordered = has_act_order(weights, plans)
    return refusals(row, sm, plans, negative_scales=negative, act_order=reordered) + zero_refusals(row, weights, plans)


def has_act_order(weights: ModelWeights, modules: Iterable[str]) -> bool:
    """Whether the columns of any of these linears are grouped in another order than they lie in."""
    return any(weights.has_act_order(module) for module in modules)


def zero_refusals(row: Target, weights: ModelWeights, plans: Mapping[str, LinearPlan]) -> list[str]:
    """A sentence where a gptq checkpoint says it is symmetric, holds other zero points, and the target takes none."""
    if row.asymmetric or not _gptq_setting(weights, "sym"):
        return []
    # The middle less one, in every nibble or byte.
    middle = {4: 0x77777777, 8: 0x7F7F7F7F}
    odd = [
        name
        for name, plan in plans.items()
        if plan.symmetric and (weights.checkpoint.tensor(f"{name}.qzeros") != middle[plan.bits]).any()
    ]
    if not odd:
        return []
    where = f"config.json says sym: true, and {compressed(odd)} have other zero points than the middle"
    return [f"{where}; {row.title} takes symmetric weights only: quantize with --sym"]


def _gptq_setting(weights: ModelWeights, name: str) -> bool:
    config = weights.checkpoint.config.get("quantization_config")
    if weights.format is None or weights.format.name != "gptq" or not isinstance(config, dict):
        return False
    return bool(config.get(name, name == "sym"))


def _has_negative_scale(weights: ModelWeights, module: str) -> bool:
    weight = weights.linear(module)
    return isinstance(weight, QuantizedLinear) and bool((weight.scales < 0).any())
