"""The "compressed-tensors" container, format pack-quantized: what llm-compressor writes and vLLM reads.

Per linear of weight [out, in] with G = in / group_size, codes packed 32 / bits to an int32 along the last dimension,
lowest bits first, stored unsigned (signed code + 2**(bits - 1)):
weight_packed int32 [out, in * bits / 32]; weight_scale [out, G] float16; weight_shape int64 [2];
weight_zero_point int32 [out * bits / 32, G], packed along the outputs, only for asymmetric weights.
Source: compressed-tensors 0.12+ (Apache-2.0), PackedQuantizationCompressor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import qtk
from qtk.bounded.programs import matches
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError
from qtk.quantization.formats.base import Format, flag, float_modules, whole
from qtk.quantization.formats.packing import pack_int32, unpack_int32
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch


class CompressedTensorsFormat(Format):
    """Container "compressed-tensors", pack-quantized: 4 and 8 bits, mixed, symmetric and not."""

    name = "compressed-tensors"
    quant_method = "compressed-tensors"
    may_lack = ("weight_shape",)

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        if scheme.bits not in (4, 8):
            return [f"{module}: {scheme.bits} bits; the compressed-tensors container is written with 4 and 8"]
        out_features, in_features = shape
        per_word = 32 // scheme.bits
        reasons = []
        if in_features % per_word:
            reasons.append(
                f"{module}: {in_features} inputs are not divisible by {per_word}, which weight_packed packs to a word"
            )
        if not scheme.symmetric and out_features % per_word:
            reasons.append(
                f"{module}: {out_features} outputs are not divisible by {per_word}, "
                "which weight_zero_point packs to a word"
            )
        return reasons

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        import torch

        out_features, in_features = shape
        groups = in_features // scheme.group_size
        specs = {
            f"{module}.weight_packed": TensorSpec(torch.int32, (out_features, in_features * scheme.bits // 32)),
            f"{module}.weight_scale": TensorSpec(torch.float16, (out_features, groups)),
            f"{module}.weight_shape": TensorSpec(torch.int64, (2,)),
        }
        if not scheme.symmetric:
            specs[f"{module}.weight_zero_point"] = TensorSpec(torch.int32, (out_features * scheme.bits // 32, groups))
        return specs

    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        import torch

        tensors = {
            f"{module}.weight_packed": pack_int32(linear.codes, linear.bits),
            f"{module}.weight_scale": linear.scales.to(torch.float16).contiguous(),
            f"{module}.weight_shape": torch.tensor(linear.codes.shape, dtype=torch.int64),
        }
        if linear.zeros is not None:
            packed = pack_int32(linear.zeros.t().contiguous(), linear.bits)
            tensors[f"{module}.weight_zero_point"] = packed.t().contiguous()
        return tensors

    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        groups: dict[LinearScheme, list[str]] = {}
        for module, linear in scheme.modules.items():
            if linear.quantized and linear != scheme.default:
                groups.setdefault(linear, []).append(f"re:^{re.escape(module)}$")
        # Targets that name a module win over those that name a class, so the overrides stand beside the default.
        named = [(["Linear"], scheme.default), *((targets, linear) for linear, targets in groups.items())]
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{number}": {
                    "targets": targets,
                    "weights": _weights(linear),
                    "input_activations": None,
                    "output_activations": None,
                    "format": "pack-quantized",
                }
                for number, (targets, linear) in enumerate(named)
            },
            "ignore": float_modules(scheme),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "version": f"qtk-{qtk.__version__}",
        }

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        config = checkpoint.config["quantization_config"]
        if config.get("format") != "pack-quantized":
            raise InputError(
                f"{checkpoint.path}: compressed-tensors format {config.get('format')!r}; qtk reads 'pack-quantized'."
            )
        if config.get("kv_cache_scheme"):
            raise InputError(f"{checkpoint.path}: its kv_cache_scheme rounds keys and values, which qtk does not do.")
        groups = [_group(checkpoint, group) for group in config["config_groups"].values()]
        default = next((scheme for targets, scheme in groups if "Linear" in targets), groups[0][1])
        left = LinearScheme(16, default.group_size, default.symmetric)
        schemes = {
            module: _scheme_of(module, groups, default) if f"{module}.weight_packed" in checkpoint else left
            for module in modules
        }
        return QuantizationScheme(default, schemes)

    def has_act_order(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> bool:
        return f"{module}.weight_g_idx" in checkpoint

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        if self.has_act_order(checkpoint, module, scheme):
            raise InputError(f"{checkpoint.path}: {module} was quantized with act-order, which qtk does not read.")
        codes = unpack_int32(checkpoint.tensor(f"{module}.weight_packed"), scheme.bits)
        scales = checkpoint.tensor(f"{module}.weight_scale", finite=True)
        zeros = None
        if not scheme.symmetric:
            packed = checkpoint.tensor(f"{module}.weight_zero_point")
            zeros = unpack_int32(packed.t().contiguous(), scheme.bits).t().contiguous()
        return QuantizedLinear(codes, scales, zeros, scheme.bits, codes.shape[1] // scales.shape[1])


def _weights(linear: LinearScheme) -> dict[str, Any]:
    return {
        "num_bits": linear.bits,
        "type": "int",
        "symmetric": linear.symmetric,
        "strategy": "group",
        "group_size": linear.group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def _group(checkpoint: Checkpoint, group: Mapping[str, Any]) -> tuple[list[str], LinearScheme]:
    weights = group["weights"]
    only_weights = not (group.get("input_activations") or group.get("output_activations") or weights.get("dynamic"))
    known = weights.get("type") == "int" and weights.get("num_bits") in (4, 8) and only_weights
    if not known or weights.get("strategy") not in ("group", "channel"):
        raise InputError(
            f"{checkpoint.path}: compressed-tensors weights {weights.get('num_bits')} bits {weights.get('type')!r}, "
            f"strategy {weights.get('strategy')!r}; qtk reads 4- and 8-bit integers by group or channel, weights only."
        )
    bits, group_size = whole(weights["num_bits"]), whole(weights.get("group_size") or -1)
    scheme = LinearScheme(bits, group_size, flag(weights.get("symmetric", True)))
    return list(group["targets"]), scheme


def _scheme_of(module: str, groups: list[tuple[list[str], LinearScheme]], default: LinearScheme) -> LinearScheme:
    for targets, scheme in groups:
        if any(t == module or (t.startswith("re:") and matches(t[3:], module)) for t in targets):
            return scheme
    return default
