"""Why a runtime cannot take a model's weights as they are stored: the reasons that config.json does not tell."""

from __future__ import annotations

from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.targets.refusals import compressed, scale_refusals
from qtk.targets.runtimes import Runtime

# The stored zero point of symmetric weights: the middle less one, in every nibble or byte.
_SYMMETRIC_ZEROS = {4: 0x77777777, 8: 0x7F7F7F7F}


def weight_refusals(runtime: Runtime, sm: int | None, weights: ModelWeights) -> list[str]:
    """A sentence for each reason: negative scales, act order, and zero points that contradict config.json.

    sm: of the GPU, None for a processor. Tensors are read only where the answer depends on them.
    """
    return [*_scales(runtime, sm, weights), *_act_order(runtime, weights), *_zero_points(runtime, weights)]


def _scales(runtime: Runtime, sm: int | None, weights: ModelWeights) -> list[str]:
    if runtime.signed_scales:
        return []
    linears = (weights.linear(name) for name in weights.scheme.quantized_modules())
    negative = any(isinstance(linear, QuantizedLinear) and (linear.scales < 0).any() for linear in linears)
    return scale_refusals(runtime, sm) if negative else []


def _act_order(runtime: Runtime, weights: ModelWeights) -> list[str]:
    """Whether a gptq checkpoint's columns are grouped in another order than they lie in."""
    if not any(weights.has_act_order(module) for module in weights.scheme.quantized_modules()):
        return []
    return [
        f"{runtime.title} does not take act-order (g_idx); `qtk quantize` uses it without writing it to the file: quantize "
        "with qtk"
    ]


def _zero_points(runtime: Runtime, weights: ModelWeights) -> list[str]:
    """A gptq checkpoint that says it is symmetric, but holds other zero points, for a runtime that takes none."""
    if runtime.asymmetric or not _gptq_setting(weights, "sym"):
        return []
    asymmetric = [
        name
        for name, linear in weights.scheme.quantized_modules().items()
        if linear.symmetric and (weights.checkpoint.tensor(f"{name}.qzeros") != _SYMMETRIC_ZEROS[linear.bits]).any()
    ]
    if not asymmetric:
        return []
    where = f"config.json says sym: true, but {compressed(asymmetric)} have other zero points than the middle"
    return [f"{where}; {runtime.title} takes symmetric weights only: quantize with --sym"]


def _gptq_setting(weights: ModelWeights, name: str) -> bool:
    config = weights.checkpoint.config.get("quantization_config")
    if weights.format is None or weights.format.name != "gptq" or not isinstance(config, dict):
        return False
    return bool(config.get(name, name == "sym"))
