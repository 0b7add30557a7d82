"""The "awq" GEMM container that AutoAWQ made and vLLM, transformers, TensorRT-LLM <= 1.2 and ONNX Runtime GenAI read.

Per linear of weight [out, in] with G = in / group_size, eight 4-bit codes of neighbouring outputs to an int32:
qweight [in, out / 8]; qzeros [G, out / 8], the zero point as it is; scales [G, out] float16.
Within a word the nibbles, lowest first, hold outputs 0, 2, 4, 6, 1, 3, 5, 7. Source: AutoAWQ 0.2 (MIT), WQLinear_GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError
from qtk.quantization.formats.base import Format, float_modules, one_setting_refusals, whole
from qtk.quantization.formats.packing import pack_int32, unpack_int32
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch

_OUTPUT_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
_SYMMETRIC_BYTE = 0x88  # two zero points of 8


class AwqFormat(Format):
    """Container "awq", version gemm: 4 bits, one group size. Symmetric weights are stored with zero points of 8."""

    name = "awq"
    quant_method = "awq"

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        reasons = []
        if scheme.bits != 4:
            reasons.append(f"{module}: {scheme.bits} bits; the awq container holds 4")
        if shape[0] % 8:
            reasons.append(f"{module}: {shape[0]} outputs are not divisible by 8, which qweight packs to a word")
        return reasons

    def scheme_refusals(self, scheme: QuantizationScheme) -> list[str]:
        return one_setting_refusals(self.name, scheme)

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        import torch

        out_features, in_features = shape
        groups = in_features // scheme.group_size
        return {
            f"{module}.qweight": TensorSpec(torch.int32, (in_features, out_features // 8)),
            f"{module}.qzeros": TensorSpec(torch.int32, (groups, out_features // 8)),
            f"{module}.scales": TensorSpec(torch.float16, (groups, out_features)),
        }

    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        import torch

        zeros = torch.full_like(linear.scales, linear.middle, dtype=torch.uint8) if linear.symmetric else linear.zeros
        assert zeros is not None
        return {
            f"{module}.qweight": _pack(linear.codes),
            f"{module}.qzeros": _pack(zeros),
            f"{module}.scales": linear.scales.t().to(torch.float16).contiguous(),
        }

    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": scheme.default.bits,
            "group_size": scheme.default.group_size,
            # Always true, because qzeros is always there: readers that see false expect another kernel.
            "zero_point": True,
            "modules_to_not_convert": float_modules(scheme),
        }

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        config = checkpoint.config["quantization_config"]
        version, bits = str(config.get("version", "gemm")).lower(), whole(config.get("bits", 4))
        if version != "gemm" or bits != 4:
            raise InputError(f"{checkpoint.path}: awq version {version!r} at {bits} bits; qtk reads 'gemm' at 4.")
        stored = [module for module in modules if f"{module}.qweight" in checkpoint]
        zeros = (f"{module}.qzeros" for module in stored)
        symmetric = all(set(piece) == {_SYMMETRIC_BYTE} for name in zeros for piece in checkpoint.pieces(name))
        default = LinearScheme(4, whole(config.get("group_size", 128)), symmetric)
        left, held = LinearScheme(16, default.group_size, symmetric), set(stored)
        return QuantizationScheme(default, {m: default if m in held else left for m in modules})

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        codes = _unpack(checkpoint.tensor(f"{module}.qweight"))
        zeros = _unpack(checkpoint.tensor(f"{module}.qzeros"))
        scales = checkpoint.tensor(f"{module}.scales", finite=True).t().contiguous()
        group_size = scheme.group_size if scheme.group_size > 0 else codes.shape[1]
        return QuantizedLinear(codes, scales, None if bool((zeros == 8).all()) else zeros, 4, group_size)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [out, n] -> int32 [n, out / 8]."""
    words = codes.t().reshape(codes.shape[1], -1, 8)
    return pack_int32(words[:, :, list(_OUTPUT_OF_NIBBLE)].reshape(codes.shape[1], -1), 4)


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, out / 8] -> uint8 [out, n]."""
    nibbles = unpack_int32(words, 4).reshape(words.shape[0], -1, 8)
    return nibbles[:, :, list(_NIBBLE_OF_OUTPUT)].reshape(words.shape[0], -1).t().contiguous()
