"""What a GPU and backend decide about a quantization: the settings left at auto, and whether the target can run the rest."""

from __future__ import annotations

from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError, listing
from qtk.models.spec import ModelSpec
from qtk.quantization.formats.base import Format
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.scheme import GROUP_SIZES, resolve_scheme, scheme_refusals
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.targets.gpu import GpuProfile, gpu_profile
from qtk.targets.refusals import LinearPlan, defaults_for, refusals
from qtk.targets.runtimes import Runtime, runtime


def for_target(options: QuantizeOptions, spec: ModelSpec) -> QuantizeOptions:
    """The options with container, group size and the sign of scales decided by the target where one is named; else the container is
    gptq.

    InputError for a GPU or backend that is not known, or a backend that this GPU does not have.
    """
    row, _ = _target(options)
    if row is None:
        return options.model_copy(update={"container": "gptq"} if options.container == "auto" else {})
    defaults = defaults_for(row, spec.module_shapes(), symmetric=options.sym)
    decided: dict[str, object] = {}
    if options.container == "auto":
        decided["container"] = defaults.container
    if options.group_size == "auto":
        decided["group_size"] = defaults.group_size
    if not defaults.signed_scales:
        decided["signed_scales"] = False
    return options.model_copy(update=decided)


def settled_scheme(
    checkpoint: Checkpoint, spec: ModelSpec, options: QuantizeOptions, container: Format
) -> QuantizationScheme:
    """The scheme of every linear. InputError with every reason why the container cannot hold it or the target cannot run
    it, all together, each with all its linears and the nearest setting that both take."""
    scheme = resolve_scheme(spec, options)
    row, _ = _target(options)
    group_sizes = row.group_sizes if row else GROUP_SIZES
    reasons = container.checkpoint_refusals(checkpoint) + scheme_refusals(spec, scheme, container, group_sizes)
    complaints = [f"{checkpoint.path} cannot be stored as {container.name}:\n{listing(reasons)}"] if reasons else []
    if reasons := target_refusals(options, spec, scheme):
        complaints.append(f"{_place(options)} cannot run this model quantized so:\n{listing(reasons)}")
    if complaints:
        raise InputError("\n".join(complaints))
    return scheme


def target_refusals(options: QuantizeOptions, spec: ModelSpec, scheme: QuantizationScheme) -> list[str]:
    """Why the named target cannot run this scheme: every reason, with all its linears and what would work; empty when it
    can, or when none is named."""
    row, gpu = _target(options)
    if row is None:
        return []
    shapes = spec.module_shapes()
    plans = {name: LinearPlan(*shapes[name], s.bits, s.group_size, s.symmetric) for name, s in scheme.modules.items()}
    return refusals(
        row,
        gpu.sm if gpu else None,
        plans,
        container=options.container,
        # A symmetric weight uses the whole range of its codes by a scale of either sign, unless told not to.
        signed_scales=any(s.symmetric and s.signed_scales for s in scheme.quantized_modules().values()),
    )


def _place(options: QuantizeOptions) -> str:
    row, gpu = _target(options)
    return f"{row.title if row else options.backend}{f' on {gpu.title}' if gpu else ''}"


def _target(options: QuantizeOptions) -> tuple[Runtime | None, GpuProfile | None]:
    gpu = gpu_profile(options.gpu) if options.gpu else None
    if options.backend != "auto":
        return runtime(options.backend), gpu
    return (runtime(gpu.default_backend) if gpu else None), gpu
