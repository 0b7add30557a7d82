"""The "gptq" v1 container that AutoGPTQ made and GPTQModel, optimum, vLLM, TensorRT-LLM and ONNX Runtime GenAI read.

Per linear of weight [out, in] with G = in / group_size, codes packed 32 / bits to an int32, lowest bits first:
qweight [in * bits / 32, out]; qzeros [G, out * bits / 32], holding the zero point minus one; scales [G, out] float16;
g_idx [in] int32, the group of each column (always k // group_size here: act-order never reaches the file).
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
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.formats.base import Format, flag, whole
from qtk.quantization.formats.packing import pack_int32, unpack_int32
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch


class GptqFormat(Format):
    """Container "gptq", v1 zero points."""

    name = "gptq"
    quant_method = "gptq"
    may_lack = ("g_idx",)

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        if scheme.bits not in (4, 8):
            return [f"{module}: {scheme.bits} bits; the gptq container is written with 4 and 8"]
        out_features, in_features = shape
        per_word = 32 // scheme.bits
        reasons = []
        if out_features % per_word:
            reasons.append(
                f"{module}: {out_features} outputs are not divisible by {per_word}, which qzeros packs to a word"
            )
        if in_features % per_word:
            reasons.append(
                f"{module}: {in_features} inputs are not divisible by {per_word}, which qweight packs to a word"
            )
        return reasons

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        import torch

        out_features, in_features = shape
        groups = in_features // scheme.group_size
        return {
            f"{module}.qweight": TensorSpec(torch.int32, (in_features * scheme.bits // 32, out_features)),
            f"{module}.qzeros": TensorSpec(torch.int32, (groups, out_features * scheme.bits // 32)),
            f"{module}.scales": TensorSpec(torch.float16, (groups, out_features)),
            f"{module}.g_idx": TensorSpec(torch.int32, (in_features,)),
        }

    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        import torch

        zeros = linear.zeros
        if zeros is None:
            zeros = torch.full(linear.scales.shape, linear.middle, dtype=torch.uint8, device=linear.codes.device)
        if int(zeros.min()) < 1:
            raise ValueError(f"{module}: the gptq v1 container stores zero point - 1, so 0 does not fit")
        return {
            f"{module}.qweight": pack_int32(linear.codes, linear.bits).t().contiguous(),
            f"{module}.qzeros": pack_int32((zeros - 1).t().contiguous(), linear.bits),
            f"{module}.scales": linear.scales.t().to(torch.float16).contiguous(),
            f"{module}.g_idx": torch.arange(linear.codes.shape[1], dtype=torch.int32) // linear.group_size,
        }

    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": scheme.default.bits,
            "group_size": scheme.default.group_size,
            "sym": scheme.default.symmetric,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": scheme.of(LM_HEAD_MODULE).quantized,
            "true_sequential": True,
            "meta": {"quantizer": [f"qtk:{qtk.__version__}"], "method": method},
        }
        if overrides := scheme.overrides():
            config["dynamic"] = _dynamic(overrides)
        return config

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        config = checkpoint.config["quantization_config"]
        if config.get("checkpoint_format", "gptq") != "gptq":
            raise InputError(
                f"{checkpoint.path}: checkpoint_format {config['checkpoint_format']!r}; qtk reads 'gptq' (v1)."
            )
        default = LinearScheme(whole(config["bits"]), whole(config["group_size"]), flag(config.get("sym", True)))
        if default.bits not in (4, 8):
            raise InputError(f"{checkpoint.path}: {default.bits} bits; qtk reads 4 and 8.")
        schemes = {}
        for module in modules:
            scheme = overridden(module, default, config.get("dynamic") or {})
            stored = f"{module}.qweight" in checkpoint
            schemes[module] = scheme if stored else LinearScheme(16, default.group_size, default.symmetric)
        return QuantizationScheme(default, schemes)

    def method(self, config: Mapping[str, Any]) -> str:
        meta = config.get("meta")
        return str(meta.get("method", self.quant_method)) if isinstance(meta, Mapping) else self.quant_method

    def has_act_order(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> bool:
        # `desc_act` in the config does not say: with static groups the order never reaches the file.
        import torch

        if f"{module}.g_idx" not in checkpoint:
            return False
        g_idx = checkpoint.tensor(f"{module}.g_idx").long()
        group_size = scheme.group_size if scheme.group_size > 0 else len(g_idx)
        return not torch.equal(g_idx, torch.arange(len(g_idx)) // group_size)

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        if self.has_act_order(checkpoint, module, scheme):
            raise InputError(
                f"{checkpoint.path}: {module} was quantized with act-order (g_idx), which qtk does not read."
            )
        qweight = checkpoint.tensor(f"{module}.qweight")
        scales = checkpoint.tensor(f"{module}.scales", finite=True).t().contiguous()
        codes = unpack_int32(qweight.t().contiguous(), scheme.bits)
        group_size = scheme.group_size if scheme.group_size > 0 else codes.shape[1]
        stored = unpack_int32(checkpoint.tensor(f"{module}.qzeros"), scheme.bits)
        zeros = ((stored + 1) & (2**scheme.bits - 1)).t().contiguous()
        symmetric = bool((zeros == 2 ** (scheme.bits - 1)).all())
        return QuantizedLinear(codes, scales, None if symmetric else zeros, scheme.bits, group_size)


def _dynamic(overrides: Mapping[str, LinearScheme]) -> dict[str, dict[str, Any]]:
    """GPTQModel's per-module overrides: '-:regex' leaves a module in float, '+:regex' gives it other settings."""
    rules: dict[str, dict[str, Any]] = {}
    for name, scheme in overrides.items():
        pattern = f"^{re.escape(name)}$"
        if not scheme.quantized:
            rules[f"-:{pattern}"] = {}
        else:
            rules[f"+:{pattern}"] = {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
    return rules


def overridden(module: str, default: LinearScheme, dynamic: Mapping[str, Mapping[str, Any]]) -> LinearScheme:
    for rule, values in dynamic.items():
        sign, pattern = (rule[0], rule[2:]) if rule[:2] in ("+:", "-:") else ("+", rule)
        if matches(pattern, module):
            if sign == "-":
                return LinearScheme(16, default.group_size, default.symmetric)
            return LinearScheme(
                whole(values.get("bits", default.bits)),
                whole(values.get("group_size", default.group_size)),
                flag(values.get("sym", default.symmetric)),
            )
    return default
