"""What a GPU and backend decide about a quantization: the settings left at auto, and whether the target can run the rest."""

from __future__ import annotations

from qtk.errors import InputError, listing
from qtk.models.spec import ModelSpec
from qtk.quantization.formats.base import QuantizationScheme
from qtk.quantization.options import QuantizeOptions
from qtk.targets.gpu import GpuProfile, gpu_profile
from qtk.targets.table import LinearPlan, Target, defaults_for, refusals, target


def for_target(options: QuantizeOptions, spec: ModelSpec) -> QuantizeOptions:
    """The options with format and group size decided: by the target where one is named, else the format is gptq.

    InputError for a GPU or backend that is not known, or a backend that this GPU does not have.
    """
    row, _ = _target(options)
    if row is None:
        return options.model_copy(update={"format": "gptq"} if options.format == "auto" else {})
    linears = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
    defaults = defaults_for(row, linears)
    decided: dict[str, object] = {}
    if options.format == "auto":
        decided["format"] = defaults.container
    if options.group_size == "auto":
        decided["group_size"] = defaults.group_size
    return options.model_copy(update=decided)


def require_target(options: QuantizeOptions, spec: ModelSpec, scheme: QuantizationScheme) -> None:
    """InputError when the named target cannot run this scheme: every reason, with all its linears and what would work."""
    row, gpu = _target(options)
    if row is None:
        return
    plans = {
        name: LinearPlan(linear.out_features, linear.in_features, s.bits, s.group_size, s.symmetric)
        for name, linear in spec.all_linears()
        for s in (scheme.modules[name],)
    }
    reasons = refusals(
        row,
        gpu.sm if gpu else None,
        plans,
        container=options.format,
        # A symmetric weight uses the whole range of its codes by a scale of either sign.
        negative_scales=any(plan.symmetric for plan in plans.values() if plan.bits < 16),
    )
    if reasons:
        place = f" on {gpu.title}" if gpu else ""
        raise InputError(f"{row.title}{place} cannot run this model quantized so:\n{listing(reasons, 500)}")


def _target(options: QuantizeOptions) -> tuple[Target | None, GpuProfile | None]:
    gpu = gpu_profile(options.gpu) if options.gpu else None
    if options.backend != "auto":
        return target(options.backend), gpu
    return (target(gpu.default_backend) if gpu else None), gpu
