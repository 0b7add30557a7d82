"""The Hugging Face layout of NVIDIA ModelOpt's W4A16_AWQ: the one INT4 container that TensorRT-LLM >= 1.3 reads.

Per linear of weight [out, in] with G = in / group_size, symmetric, 4 bits:
weight uint8 [out / 2, in], signed codes -8 .. 7 of two neighbouring outputs to a byte, the even one in the low nibble;
weight_scale [out, G] float32; pre_quant_scale [in] in the model's dtype on o_proj and down_proj, which their loader reads whether or
not activations are scaled: ones here. q/k/v and gate/up are fused there, so they must be quantized alike.
hf_quant_config.json beside config.json says the same as `quantization_config`, in a nested form.
Source: ModelOpt 0.47 (Apache-2.0), modelopt/torch/export.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import qtk
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError
from qtk.quantization.formats.base import Format, float_modules, one_setting_refusals
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch

_UNFUSED = (".o_proj", ".down_proj")
_FUSED = ((".q_proj", ".k_proj", ".v_proj"), (".gate_proj", ".up_proj"))
_ALGORITHM = "W4A16_AWQ"
_GROUP_SIZES = (64, 128)  # TensorRT-LLM and Edge-LLM have kernels for these alone


class ModelOptFormat(Format):
    """Container "modelopt", algorithm W4A16_AWQ, no activation scaling (every pre_quant_scale is one)."""

    name = "modelopt"
    quant_method = "modelopt"
    may_lack = ("pre_quant_scale",)
    in_model_dtype = ("pre_quant_scale",)

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        reasons = []
        if scheme.bits != 4:
            reasons.append(f"{module}: {scheme.bits} bits; the modelopt container (W4A16_AWQ) holds 4")
        if not scheme.symmetric:
            reasons.append(f"{module}: asymmetric; the modelopt container (W4A16_AWQ) has no zero points")
        if scheme.group_size not in _GROUP_SIZES:
            sizes = " or ".join(map(str, _GROUP_SIZES))
            reasons.append(
                f"{module}: group size {scheme.group_size}; the readers of the modelopt container take {sizes}"
            )
        if shape[0] % 2:
            reasons.append(f"{module}: {shape[0]} outputs are not divisible by 2, which weight packs to a byte")
        return reasons

    def scheme_refusals(self, scheme: QuantizationScheme) -> list[str]:
        return one_setting_refusals(self.name, scheme) + _torn_sets(scheme)

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        import torch

        out_features, in_features = shape
        specs = {
            f"{module}.weight": TensorSpec(torch.uint8, (out_features // 2, in_features)),
            f"{module}.weight_scale": TensorSpec(torch.float32, (out_features, in_features // scheme.group_size)),
        }
        if module.endswith(_UNFUSED):
            specs[f"{module}.pre_quant_scale"] = TensorSpec(torch.float16, (in_features,))
        return specs

    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        import torch

        nibbles = linear.signed_codes().view(torch.uint8) & 15
        tensors = {
            f"{module}.weight": nibbles[0::2] | (nibbles[1::2] << 4),
            f"{module}.weight_scale": linear.scales.to(torch.float32),
        }
        if module.endswith(_UNFUSED):
            tensors[f"{module}.pre_quant_scale"] = torch.ones(linear.codes.shape[1], dtype=torch.float16)
        return tensors

    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        algorithm = _algorithm(scheme)
        return {
            "quant_method": "modelopt",
            "quant_algo": algorithm["quant_algo"],
            "kv_cache_scheme": None,
            "group_size": algorithm["group_size"],
            "has_zero_point": False,
            "pre_quant_scale": True,
            "ignore": algorithm["exclude_modules"],
            "producer": _producer(),
        }

    def extra_files(self, scheme: QuantizationScheme) -> dict[str, bytes]:
        config = {"producer": _producer(), "quantization": _algorithm(scheme)}
        return {"hf_quant_config.json": (json.dumps(config, indent=4) + "\n").encode()}

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        config = checkpoint.config["quantization_config"]
        if config.get("quant_algo") != _ALGORITHM or config.get("has_zero_point"):
            raise InputError(
                f"{checkpoint.path}: ModelOpt algorithm {config.get('quant_algo')!r}; qtk reads {_ALGORITHM!r} "
                "without zero points."
            )
        stored = [module for module in modules if f"{module}.weight_scale" in checkpoint]
        if not stored:
            raise InputError(f"{checkpoint.path}: config.json says {_ALGORITHM}, but no linear has a weight_scale.")
        # ModelOpt itself leaves the group size out of config.json; the tensors always tell.
        group_size = modules[stored[0]][1] // checkpoint.info(f"{stored[0]}.weight_scale").shape[1]
        default, left = LinearScheme(4, group_size, True), LinearScheme(16, group_size, True)
        held = set(stored)
        schemes = {module: default if module in held else left for module in modules}
        return QuantizationScheme(default, schemes)

    def method(self, config: Mapping[str, Any]) -> str:
        return "awq"  # the one algorithm that is read here: W4A16_AWQ

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        import torch

        name = f"{module}.pre_quant_scale"
        if name in checkpoint and not bool((checkpoint.tensor(name) == 1).all()):
            raise InputError(
                f"{checkpoint.path}: {module} scales its activations (pre_quant_scale), which qtk does not read: "
                "quantize the float model with qtk."
            )
        packed = checkpoint.tensor(f"{module}.weight").view(torch.uint8)
        # Two's complement to offset binary: -8 .. 7 in four bits, plus 8, is the same bits with the highest one flipped.
        codes = torch.stack((packed & 15, packed >> 4), dim=1).reshape(-1, packed.shape[1]) ^ 8
        scales = checkpoint.tensor(f"{module}.weight_scale", finite=True)
        return QuantizedLinear(codes, scales, None, 4, scheme.group_size)


def _algorithm(scheme: QuantizationScheme) -> dict[str, Any]:
    return {
        "quant_algo": _ALGORITHM,
        "kv_cache_quant_algo": None,
        "group_size": scheme.default.group_size,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": float_modules(scheme),
    }


def _producer() -> dict[str, str]:
    return {"name": "modelopt", "version": f"qtk-{qtk.__version__}"}


def _torn_sets(scheme: QuantizationScheme) -> list[str]:
    """A sentence for each fused set (q/k/v, gate/up) of which some linears are quantized and some are float."""
    reasons = []
    for names in _FUSED:
        for module in scheme.modules:
            if not module.endswith(names[0]):
                continue
            stem = module.removesuffix(names[0])
            bits = {name: scheme.modules[stem + name].bits for name in names if stem + name in scheme.modules}
            if len(set(bits.values())) > 1:
                said = ", ".join(f"{name[1:]} {count} bits" for name, count in bits.items())
                reasons.append(f"{stem}: {said}; the modelopt container's reader fuses these, so quantize them alike")
    return reasons
