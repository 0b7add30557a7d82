"""From the options to the scheme of every linear: group sizes that divide, overrides by pattern, fused sets alike."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from qtk.errors import InputError
from qtk.models.spec import LM_HEAD_MODULE, ModelSpec
from qtk.progress import warn
from qtk.quantization.formats.base import Format
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

GROUP_SIZES = (128, 64, 32)


def resolve_scheme(spec: ModelSpec, options: QuantizeOptions) -> QuantizationScheme:
    """The scheme of every linear of a model, whether or not it can be stored so (`scheme_refusals` says).

    InputError for an override that says nothing, matches nothing, or for settings that leave nothing to quantize.
    """
    shapes = spec.module_shapes()
    default = LinearScheme(options.bits, _group_size(shapes, options), options.sym, options.signed_scales)
    modules = dict.fromkeys(shapes, default)
    if LM_HEAD_MODULE in modules:
        modules[LM_HEAD_MODULE] = replace(default, bits=int(options.lm_head_bits))
    elif options.lm_head_bits != "16":
        raise InputError(
            "This model's lm_head is tied to its embedding, which stays in float in a checkpoint; "
            "an engine can hold an 8-bit head of its own (qtk build-engine --lm-head-bits 8)."
        )
    patterns = [text.partition("=")[0].strip() for text in options.override]
    if twice := sorted({pattern for pattern in patterns if patterns.count(pattern) > 1}):
        raise InputError(f"--override is given more than once for {', '.join(twice)}: leave one of them.")
    for text in options.override:
        modules |= _overridden(text, modules)
    scheme = QuantizationScheme(default, modules)
    if not scheme.quantized:
        raise InputError("The overrides leave every linear in float: there is nothing to quantize.")
    return scheme


def scheme_refusals(
    spec: ModelSpec, scheme: QuantizationScheme, container: Format, group_sizes: tuple[int, ...] = GROUP_SIZES
) -> list[str]:
    """Why this scheme cannot be stored in this container, every linear named; empty when it can.

    group_sizes: what the advice may name, those of the target where there is one.
    """
    shapes = spec.module_shapes()
    quantized = scheme.quantized_modules()
    return [
        *_uneven(shapes, quantized, group_sizes),
        *_fused_apart(spec, scheme.modules),
        *(reason for name, s in quantized.items() for reason in container.refusals(name, shapes[name], s)),
        *container.scheme_refusals(scheme),
    ]


def _group_size(shapes: Mapping[str, tuple[int, int]], options: QuantizeOptions) -> int:
    if options.group_size != "auto":
        return int(options.group_size)
    for group_size in GROUP_SIZES:
        if all(in_features % group_size == 0 for _, in_features in shapes.values()):
            return group_size
    return GROUP_SIZES[-1]  # refused below with the list of the layers that it does not divide


def _uneven(
    shapes: Mapping[str, tuple[int, int]], quantized: Mapping[str, LinearScheme], group_sizes: tuple[int, ...]
) -> list[str]:
    """What would work, and then the linears that their group does not divide."""
    offenders = [
        f"{name}: {shapes[name][1]} inputs, group {s.group_size}"
        for name, s in quantized.items()
        if shapes[name][1] % s.group_size
    ]
    if not offenders:
        return []
    works = [g for g in group_sizes if all(shapes[name][1] % g == 0 for name in quantized)]
    advice = (
        f"--group-size {max(works)} divides them all"
        if works
        else f"none of the groups {', '.join(map(str, sorted(group_sizes)))} divides them all: leave these in float "
        "(--override 'NAME=skip')"
    )
    what = "1 linear is not divisible by its group"
    if len(offenders) > 1:
        what = f"{len(offenders)} linears are not divisible by their group"
    return [f"{what}; {advice}", *offenders]


def _overridden(text: str, modules: Mapping[str, LinearScheme]) -> dict[str, LinearScheme]:
    """The modules that an override "PATTERN=bits:8,group:32" matches, with their new scheme."""
    pattern, _, settings = text.partition("=")
    bits: int | None = None
    group_size: int | None = None
    for setting in settings.split(","):
        key, _, value = (part.strip() for part in setting.partition(":"))
        if (key in ("bits", "skip") and bits is not None) or (key == "group" and group_size is not None):
            raise InputError(
                f"--override {text} contradicts itself: {setting.strip()} comes after another setting of its kind."
            )
        if setting.strip() == "skip":
            bits = 16
        elif key == "bits" and value in ("4", "8", "16"):
            bits = int(value)
        elif key == "group" and value in ("32", "64", "128"):
            group_size = int(value)
        else:
            known = "bits:4, bits:8, bits:16 or skip (left in float), group:32, group:64, group:128"
            raise InputError(f"--override {text}: settings are {known}, not {setting!r}.")
    matched = [name for name in modules if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        raise InputError(f"--override {text}: no module matches {pattern!r}. Names look like {next(iter(modules))}.")
    if LM_HEAD_MODULE in matched and pattern != LM_HEAD_MODULE and bits in (4, 8):
        warn(
            f"--override {text} matches lm_head too: it is quantized to {bits} bits, which costs more than any "
            "other linear. Add --override lm_head=skip to leave it in float."
        )
    return {
        name: replace(old, bits=bits or old.bits, group_size=group_size or old.group_size)
        for name, old in modules.items()
        if name in matched
    }


def _fused_apart(spec: ModelSpec, modules: Mapping[str, LinearScheme]) -> list[str]:
    """Runtimes fuse q, k, v and gate, up into one product, so the members of a set must be stored alike."""
    offenders = []
    for layer in range(spec.num_layers):
        sets: dict[str, dict[str, LinearScheme]] = {}
        for linear in spec.linears():
            if linear.fused_with:
                name = spec.block_prefix(layer) + linear.name
                sets.setdefault(linear.fused_with, {})[name] = modules[name]
        offenders += [", ".join(members) for members in sets.values() if len(set(members.values())) > 1]
    return [
        f"{members}: linears that runtimes fuse must be stored alike; extend the pattern to the whole set"
        for members in offenders
    ]
