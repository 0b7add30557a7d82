"""What each backend takes of a quantized model, as data: one row a backend, read by quantize, plan and build-engine.

Asked before any work, it names every linear that a backend cannot run and the nearest setting that it can. A row's
`sources` say where its facts come from; what nobody ran on a GPU says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qtk.errors import InputError


@dataclass(frozen=True)
class Target:
    """One backend's row. `containers` in order of preference; `multiple_of` bounds in and out features of a quantized
    linear, a tensor-parallel rank's share of them included. SMs are inclusive; None where no GPU is asked for.
    """

    backend: str
    title: str
    containers: tuple[str, ...]
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    asymmetric: bool
    negative_scales: bool
    act_order: bool
    multiple_of: int = 1
    min_sm: int | None = None
    max_sm: int | None = None
    unknown_sms: tuple[int, ...] = ()
    sources: str = ""


_READ_BY_QTK = ("gptq", "awq", "modelopt", "compressed-tensors")
_SYMMETRIC_ONLY = ("gptq", "modelopt", "awq", "compressed-tensors")

TARGETS: dict[str, Target] = {
    row.backend: row
    for row in (
        Target(
            "onnxruntime",
            "ONNX Runtime on a processor",
            _READ_BY_QTK,
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            negative_scales=True,
            act_order=False,
            sources="the portable graph, run in the tests",
        ),
        Target(
            "tensorrt",
            "TensorRT-RTX",
            _SYMMETRIC_ONLY,
            bits=(4,),
            group_sizes=(32, 64, 128),
            asymmetric=False,
            negative_scales=True,
            act_order=False,
            min_sm=80,
            max_sm=121,
            unknown_sms=(90, 100, 103),
            sources="compiled here for SM80, 86, 89 and 120 (its support matrix does not name SM80); SM75 compiles no INT4; "
            "never run on a GPU",
        ),
        Target(
            "tensorrt-full",
            "TensorRT",
            _SYMMETRIC_ONLY,
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            negative_scales=False,
            act_order=False,
            min_sm=80,
            sources="documentation: block-wise INT4 is symmetric, blocks of 64 and 128, scales positive; not tried",
        ),
        Target(
            "tensorrt-edgellm",
            "TensorRT Edge-LLM 0.11",
            ("modelopt", "gptq"),
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            negative_scales=True,
            act_order=False,
            multiple_of=64,
            min_sm=80,
            max_sm=120,
            unknown_sms=(89, 90),
            sources="its exporter, run in the tests; it clamps asymmetric codes silently; the wheel's kernels are for SM80, "
            "86, 100 and 120 exactly; its engines were never run here",
        ),
        Target(
            "tensorrt-llm",
            "TensorRT-LLM",
            ("modelopt", *(c for c in _SYMMETRIC_ONLY if c != "modelopt")),
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            negative_scales=True,
            act_order=False,
            multiple_of=64,
            min_sm=80,
            max_sm=90,
            sources="its source: group-wise kernels from SM80 with groups of 64 and 128; no INT4 on Blackwell; not run here",
        ),
        Target(
            "onnxruntime-genai",
            "ONNX Runtime GenAI's builder",
            ("gptq", "awq"),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            negative_scales=True,
            act_order=False,
            sources="its builder, run in the tests; it refuses compressed-tensors and modelopt INT4",
        ),
        Target(
            "vllm",
            "vLLM and SGLang",
            ("gptq", "compressed-tensors", "awq"),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            negative_scales=True,
            act_order=False,
            min_sm=75,
            sources="documentation; not run here",
        ),
        Target(
            "llama.cpp",
            "llama.cpp",
            ("gguf",),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=False,
            negative_scales=True,
            act_order=False,
            sources="run in the tests on a processor",
        ),
    )
}


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
    """The settings that suit a target best: what `--gpu` alone means."""

    container: str
    bits: int
    group_size: int
    symmetric: bool
    signed_scales: bool


def target(backend: str) -> Target:
    """The row of a backend. InputError lists the known ones."""
    if backend not in TARGETS:
        raise InputError(f"Backend {backend!r} has no row in the target table; it has {', '.join(TARGETS)}.")
    return TARGETS[backend]


def defaults_for(row: Target, linears: Mapping[str, tuple[int, int]]) -> Defaults:
    """The preferred settings for a model of these linears [out, in]: the largest group that the target takes and that
    divides them all, else its smallest (which `refusals` then explains). Symmetric, with signed scales where allowed.
    """
    fitting = [g for g in row.group_sizes if all(inputs % g == 0 for _, inputs in linears.values())]
    group_size = max(fitting) if fitting else min(row.group_sizes)
    return Defaults(row.containers[0], min(row.bits), group_size, True, row.negative_scales)


def refusals(
    row: Target,
    sm: int | None,
    linears: Mapping[str, LinearPlan],
    *,
    container: str | None = None,
    negative_scales: bool = False,
    act_order: bool = False,
    tensor_parallel: int = 1,
) -> list[str]:
    """A sentence for each reason why the target cannot run this, each naming all its offenders and what would work.

    sm: of the GPU, None for a processor. container: None where the backend reads qtk's own form. negative_scales: whether
    any scale is below zero.
    """
    reasons = [*_gpu(row, sm), *_container(row, container)]
    quantized = {name: plan for name, plan in linears.items() if plan.bits < 16}
    if negative_scales and not row.negative_scales:
        others = [
            other.backend for other in TARGETS.values() if other.negative_scales and (not sm or _runs_on(other, sm))
        ]
        reasons.append(
            f"{row.title} takes no negative scales, and symmetric weights that use their whole range have them; "
            f"{', '.join(others)} take them"
        )
    if act_order and not row.act_order:
        reasons.append(
            f"{row.title} takes no act-order (g_idx); qtk's own order never reaches the file: quantize with qtk"
        )
    return reasons + _settings(row, quantized) + _shapes(row, quantized, tensor_parallel)


def _runs_on(row: Target, sm: int) -> bool:
    if row.min_sm is None or sm < row.min_sm or sm in row.unknown_sms:
        return False
    return row.max_sm is None or sm <= row.max_sm


def _gpu(row: Target, sm: int | None) -> list[str]:
    if sm is None or row.min_sm is None or _runs_on(row, sm):
        return []
    last = f" to SM{row.max_sm}" if row.max_sm else " on"
    but = f", without SM{' and SM'.join(map(str, row.unknown_sms))}" if row.unknown_sms else ""
    others = [other.backend for other in TARGETS.values() if _runs_on(other, sm)]
    hint = f"; for this GPU: {', '.join(others)}" if others else ""
    return [f"{row.title} runs INT4 from SM{row.min_sm}{last}{but}; this GPU is SM{sm}{hint}"]


def _container(row: Target, container: str | None) -> list[str]:
    if container is None or container in row.containers:
        return []
    return [f"{row.title} does not read the container {container!r}: --container {row.containers[0]}"]


def _settings(row: Target, linears: Mapping[str, LinearPlan]) -> list[str]:
    reasons = []
    for bits in sorted({plan.bits for plan in linears.values()} - set(row.bits)):
        names = [name for name, plan in linears.items() if plan.bits == bits]
        allowed = " or ".join(f"bits:{b}" for b in (*row.bits, 16))
        reasons.append(f"{row.title} takes no {bits}-bit weights: {compressed(names)}; use {allowed}")
    for group_size in sorted({plan.group_size for plan in linears.values()} - set(row.group_sizes)):
        names = [name for name, plan in linears.items() if plan.group_size == group_size]
        inputs = [linears[name].in_features for name in names]
        reasons.append(
            f"{row.title} takes groups of {_either(row.group_sizes)}, not {group_size}: {compressed(names)}; "
            f"{_nearest_group(row, group_size, inputs)}"
        )
    if not row.asymmetric and (names := [name for name, plan in linears.items() if not plan.symmetric]):
        reasons.append(f"{row.title} takes symmetric weights only: {compressed(names)}; quantize with --sym")
    return reasons


def _nearest_group(row: Target, group_size: int, inputs: Iterable[int]) -> str:
    sizes = list(inputs)
    fitting = [g for g in row.group_sizes if all(size % g == 0 for size in sizes)]
    if fitting:
        return f"use --group-size {min(fitting, key=lambda g: abs(g - group_size))}"
    return "none of those divides their inputs: leave these in float (--override 'NAME=bits:16')"


def _shapes(row: Target, linears: Mapping[str, LinearPlan], tensor_parallel: int) -> list[str]:
    """Sizes that a kernel's tiles do not divide: of the whole linear, or of one rank's share of its split dimension."""
    offenders: dict[str, list[str]] = {}
    for name, plan in linears.items():
        split_inputs = name.endswith(("o_proj", "down_proj"))
        out = plan.out_features if split_inputs else plan.out_features / tensor_parallel
        inputs = plan.in_features / tensor_parallel if split_inputs else plan.in_features
        if out % row.multiple_of or inputs % row.multiple_of:
            offenders.setdefault(f"[{out:g}, {inputs:g}]", []).append(name)
        elif inputs % plan.group_size and plan.in_features % plan.group_size == 0:
            offenders.setdefault(f"[{out:g}, {inputs:g}] in groups of {plan.group_size}", []).append(name)
    share = f" on each of {tensor_parallel} ranks" if tensor_parallel > 1 else ""
    advice = "a smaller --tp, or leave" if tensor_parallel > 1 else "leave"
    return [
        f"{row.title} needs sizes [out, in] in multiples of {row.multiple_of} and of the group{share}: {size} is not, of "
        f"{compressed(names)}; {advice} these in float (--override 'NAME=bits:16')"
        for size, names in offenders.items()
    ]


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, numbers))


def compressed(names: Iterable[str]) -> str:
    """Module names with equal ones of several layers written once: model.layers.{0-2,5}.mlp.up_proj (4 linears)."""
    layers: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=layers\.)\d+(?=\.)", name)
        key = name if found is None else f"{name[: found.start()]}{{}}{name[found.end() :]}"
        layers.setdefault(key, []).append(-1 if found is None else int(found.group()))
    words, count = [], 0
    for key, numbers in layers.items():
        count += len(numbers)
        words.append(key.replace("{}", _ranges(numbers)))
    return f"{', '.join(words)}{f' ({count} linears)' if count > 1 else ''}"


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) + "}"
