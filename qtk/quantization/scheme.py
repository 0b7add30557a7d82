"""From the options to the scheme of every linear: group sizes that divide, overrides by pattern, fused sets alike."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from qtk.errors import InputError, listing
from qtk.models.spec import ModelSpec
from qtk.quantization.formats.base import Format, LinearScheme, QuantizationScheme
from qtk.quantization.options import QuantizeOptions

GROUP_SIZES = (128, 64, 32)
LM_HEAD_MODULE = "lm_head"


def resolve_scheme(spec: ModelSpec, options: QuantizeOptions, container: Format) -> QuantizationScheme:
    """The scheme of every linear of a model. InputError naming every linear that cannot be stored so, and what would work."""
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in spec.all_linears()}
    default = LinearScheme(options.bits, _group_size(shapes, options), options.sym)
    modules = dict.fromkeys(shapes, default)
    if not spec.tie_word_embeddings:
        shapes[LM_HEAD_MODULE] = (spec.vocab_size, spec.hidden_size)
        modules[LM_HEAD_MODULE] = replace(default, bits=int(options.lm_head_bits))
    elif options.lm_head_bits != "16":
        raise InputError(
            "This model's lm_head is tied to its embedding, which stays in float in a checkpoint; "
            "an engine can hold an 8-bit head of its own (qtk build-engine --lm-head-bits 8)."
        )
    for text in options.override:
        modules |= _overridden(text, modules)
    scheme = QuantizationScheme(default, modules, method=options.method)
    _require_divisible(shapes, scheme)
    _require_fused_alike(spec, modules)
    reasons = [r for name, s in modules.items() if s.bits < 16 for r in container.refusals(name, shapes[name], s)]
    reasons += container.scheme_refusals(scheme)
    if reasons:
        raise InputError(f"The {container.name} container cannot hold this:\n{listing(reasons)}")
    return scheme


def _group_size(shapes: Mapping[str, tuple[int, int]], options: QuantizeOptions) -> int:
    if options.group_size != "auto":
        return int(options.group_size)
    for group_size in GROUP_SIZES:
        if all(in_features % group_size == 0 for _, in_features in shapes.values()):
            return group_size
    return GROUP_SIZES[-1]  # refused below with the list of the layers that it does not divide


def _require_divisible(shapes: Mapping[str, tuple[int, int]], scheme: QuantizationScheme) -> None:
    offenders = [
        f"{name}: {shapes[name][1]} inputs, group {s.group_size}"
        for name, s in scheme.modules.items()
        if s.bits < 16 and shapes[name][1] % s.group_size
    ]
    if not offenders:
        return
    works = [g for g in GROUP_SIZES if all(inputs % g == 0 for _, inputs in shapes.values())]
    advice = (
        f"--group-size {works[0]} divides them all"
        if works
        else "No group size divides them all: leave these in float with --override"
    )
    raise InputError(
        f"{len(offenders)} linears are not divisible by their group:\n{listing(offenders, 500)}\n{advice}."
    )


def _overridden(text: str, modules: Mapping[str, LinearScheme]) -> dict[str, LinearScheme]:
    """The modules that an override "PATTERN=bits:8,group:32" matches, with their new scheme."""
    pattern, _, settings = text.partition("=")
    bits: int | None = None
    group_size: int | None = None
    for setting in settings.split(","):
        key, _, value = (part.strip() for part in setting.partition(":"))
        if key == "bits" and value in ("4", "8", "16"):
            bits = int(value)
        elif key == "group" and value in ("32", "64", "128"):
            group_size = int(value)
        else:
            known = "bits:4, bits:8, bits:16, group:32, group:64, group:128"
            raise InputError(f"--override {text}: settings are {known}, not {setting!r}.")
    matched = [name for name in modules if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        raise InputError(f"--override {text}: no module matches {pattern!r}. Names look like {next(iter(modules))}.")
    return {
        name: replace(old, bits=bits or old.bits, group_size=group_size or old.group_size)
        for name, old in modules.items()
        if name in matched
    }


def _require_fused_alike(spec: ModelSpec, modules: Mapping[str, LinearScheme]) -> None:
    """Runtimes fuse q, k, v and gate, up into one product, so the members of a set must be stored alike."""
    offenders = []
    for layer in range(spec.num_layers):
        sets: dict[str, dict[str, LinearScheme]] = {}
        for linear in spec.linears():
            if linear.fused_with:
                name = spec.block_prefix(layer) + linear.name
                sets.setdefault(linear.fused_with, {})[name] = modules[name]
        offenders += [", ".join(members) for members in sets.values() if len(set(members.values())) > 1]
    if offenders:
        raise InputError(
            f"Linears that runtimes fuse must be stored alike; extend the pattern to each whole set:\n{listing(offenders)}"
        )
