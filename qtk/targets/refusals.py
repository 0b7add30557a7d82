"""Why a runtime cannot run a quantized model, from its record in runtimes.py: asked by quantize, plan and build-engine.

The answers come before any work. Each names every linear that the runtime cannot run, and the nearest setting that it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qtk.errors import by_layer
from qtk.targets.runtimes import RUNTIMES, Runtime


@dataclass(frozen=True)
class LinearPlan:
    """How one linear [out_features, in_features] is, or would be, quantized; bits 16: left in float."""

    out_features: int
    in_features: int
    bits: int
    group_size: int
    symmetric: bool


@dataclass(frozen=True)
class Defaults:
    """The settings that suit a runtime best: what `--gpu` alone means."""

    container: str
    group_size: int
    signed_scales: bool


def defaults_for(runtime: Runtime, linears: Mapping[str, tuple[int, int]], *, symmetric: bool = True) -> Defaults:
    """The preferred settings for a model of these linears [out, in], symmetric or not: the largest group that the runtime takes and that
    divides them all, else its smallest (which `refusals` then explains), and signed scales where the runtime takes them.
    """
    fitting = [g for g in runtime.group_sizes if all(inputs % g == 0 for _, inputs in linears.values())]
    group_size = max(fitting) if fitting else min(runtime.group_sizes)
    container = next(name for name in runtime.containers if runtime.reads(name, symmetric=symmetric))
    return Defaults(container, group_size, runtime.signed_scales)


def refusals(
    runtime: Runtime,
    sm: int | None,
    linears: Mapping[str, LinearPlan],
    *,
    container: str | None = None,
    signed_scales: bool = False,
    tensor_parallel: int = 1,
) -> list[str]:
    """A sentence for each reason why the runtime cannot run this, each naming all its offenders and what would work: the
    options of `qtk quantize` where the model has to be quantized otherwise.

    sm: of the GPU, None for a processor. container: None where the backend reads qtk's own form. signed_scales: whether any
    scale is below zero.
    """
    quantized = {name: plan for name, plan in linears.items() if plan.bits < 16}
    return [
        *_gpu(runtime, sm),
        *_container(runtime, container, [name for name, plan in quantized.items() if not plan.symmetric]),
        *(scale_refusals(runtime, sm) if signed_scales else []),
        *_settings(runtime, quantized),
        *_shapes(runtime, quantized, tensor_parallel),
    ]


def scale_refusals(runtime: Runtime, sm: int | None) -> list[str]:
    """The sentence for a model that has scales below zero; empty where the runtime takes them."""
    if runtime.signed_scales:
        return []
    others = [other.name for other in RUNTIMES.values() if other.signed_scales and (sm is None or other.runs_on(sm))]
    return [
        f"{runtime.title} does not take negative scales, and symmetric weights that use their whole range have them: quantize "
        f"with --positive-scales, which --backend {runtime.name} sets by itself; {', '.join(others)} take negative ones"
    ]


def _gpu(runtime: Runtime, sm: int | None) -> list[str]:
    if sm is None or runtime.min_sm is None or runtime.runs_on(sm):
        return []
    last = f" to SM{runtime.max_sm}" if runtime.max_sm else " on"
    but = f", without SM{' and SM'.join(map(str, runtime.unknown_sms))}" if runtime.unknown_sms else ""
    others = [other.name for other in RUNTIMES.values() if other.runs_on(sm)]
    hint = f"; for this GPU: {', '.join(others)}" if others else ""
    return [f"{runtime.title} runs INT4 from SM{runtime.min_sm}{last}{but}; this GPU is SM{sm}{hint}"]


def _container(runtime: Runtime, container: str | None, asymmetric: list[str]) -> list[str]:
    if container is None or runtime.reads(container, symmetric=not asymmetric):
        return []
    if container in runtime.containers:
        other = next(name for name in runtime.containers if runtime.reads(name, symmetric=False))
        return [
            f"{runtime.title} reads the container {container!r} with symmetric weights only: {compressed(asymmetric)}; quantize "
            f"with --sym, or --container {other}"
        ]
    return [f"{runtime.title} does not read the container {container!r}: --container {runtime.containers[0]}"]


def _settings(runtime: Runtime, linears: Mapping[str, LinearPlan]) -> list[str]:
    reasons = []
    for bits in sorted({plan.bits for plan in linears.values()} - set(runtime.bits)):
        names = [name for name, plan in linears.items() if plan.bits == bits]
        allowed = " or ".join(f"bits:{b}" for b in (*runtime.bits, 16))
        reasons.append(
            f"{runtime.title} does not take {bits}-bit weights: {compressed(names)}; quantize with --bits "
            f"{_or(runtime.bits)}, or these alone with --override 'NAME={allowed}'"
        )
    for group_size in sorted({plan.group_size for plan in linears.values()} - set(runtime.group_sizes)):
        names = [name for name, plan in linears.items() if plan.group_size == group_size]
        inputs = [linears[name].in_features for name in names]
        reasons.append(
            f"{runtime.title} takes groups of {_or(runtime.group_sizes)}, not {group_size}: {compressed(names)}; "
            f"{_nearest_group(runtime, group_size, inputs)}"
        )
    if not runtime.asymmetric and (names := [name for name, plan in linears.items() if not plan.symmetric]):
        reasons.append(f"{runtime.title} takes symmetric weights only: {compressed(names)}; quantize with --sym")
    return reasons


def _nearest_group(runtime: Runtime, group_size: int, inputs: Iterable[int]) -> str:
    sizes = list(inputs)
    fitting = [g for g in runtime.group_sizes if all(size % g == 0 for size in sizes)]
    if fitting:
        return f"quantize with --group-size {min(fitting, key=lambda g: abs(g - group_size))}"
    return (
        "none of those sizes divides their inputs: quantize with --override 'NAME=bits:16', which leaves these in float"
    )


def _shapes(runtime: Runtime, linears: Mapping[str, LinearPlan], tensor_parallel: int) -> list[str]:
    """Sizes that a kernel's tiles do not divide: of the whole linear, or of one rank's share of its split dimension."""
    offenders: dict[str, list[str]] = {}
    for name, plan in linears.items():
        split_inputs = name.endswith(("o_proj", "down_proj"))
        out = plan.out_features if split_inputs else plan.out_features / tensor_parallel
        inputs = plan.in_features / tensor_parallel if split_inputs else plan.in_features
        if out % runtime.multiple_of or inputs % runtime.multiple_of:
            offenders.setdefault(f"[{out:g}, {inputs:g}]", []).append(name)
        elif inputs % plan.group_size and plan.in_features % plan.group_size == 0:
            offenders.setdefault(f"[{out:g}, {inputs:g}] in groups of {plan.group_size}", []).append(name)
    share = f" on each of {tensor_parallel} ranks" if tensor_parallel > 1 else ""
    advice = "a smaller --tp, or quantize" if tensor_parallel > 1 else "quantize"
    return [
        f"{runtime.title} needs sizes [out, in] that are multiples of {runtime.multiple_of} and of the group{share}; "
        f"{size} is the size of {compressed(names)}; {advice} with --override 'NAME=bits:16', which leaves these in float"
        for size, names in offenders.items()
    ]


def _or(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, numbers))


def compressed(names: Iterable[str]) -> str:
    """Module names with equal ones of several layers written once: model.layers.{0-2,5}.mlp.up_proj (4 linears)."""
    all_names = list(names)
    return f"{', '.join(by_layer(all_names))}{f' ({len(all_names)} linears)' if len(all_names) > 1 else ''}"
