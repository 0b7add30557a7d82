"""A plugin of vLLM that takes the place of the one operator that its library for processors without AVX-512 lacks.

The library has the product of 16-bit activations with 4-bit weights for AVX-512 and AMX alone. Everything else of it, such as how
a checkpoint is read, checked and packed, and attention, runs on AVX2 too. vLLM finds the plugin by the folder beside this
file when PYTHONPATH names the folder of both. Where the operator is there, the plugin does nothing.
"""

from __future__ import annotations

import torch

_LINES = (
    "cpu_gemm_wna16(Tensor input, Tensor q_weight, Tensor(a2!) output, Tensor scales, Tensor? zeros, Tensor? bias, "
    "SymInt pack_factor, str isa_hint) -> ()"
)
_CHANNELS = 16  # output channels of a block, whose codes lie together
_weights: dict[int, torch.Tensor] = {}
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library


def register() -> None:
    import vllm._custom_ops  # noqa: F401 - loads the library

    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(_LINES)
    library.impl("cpu_gemm_wna16", _product, "CPU")
    _libraries.append(library)
    print("qtk: the product with 4-bit weights is done by the tests' stand-in, because vLLM has it for AVX-512 only")


def _product(input, q_weight, output, scales, zeros, bias, pack_factor, isa_hint) -> None:
    """output [M, N] = input [M, K] times the weight. q_weight: int32 [N / 16, 2 K], eight codes each, low bits first."""
    weight = _weights.get(q_weight.data_ptr())
    if weight is None:
        weight = _weights[q_weight.data_ptr()] = _dequantized(q_weight, scales, zeros)
    product = input.float() @ weight
    output.copy_(product if bias is None else product + bias.float())


def _dequantized(q_weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """float32 [K, N]. scales [groups, N]; zeros int32 [groups, N / 8], 8 for all where there are none."""
    blocks = q_weight.shape[0]
    codes = _unpacked(q_weight).view(blocks, -1, _CHANNELS).permute(1, 0, 2).reshape(-1, blocks * _CHANNELS)
    groups = scales.shape[0]
    zero = torch.tensor(8) if zeros is None else _unpacked(zeros).view(groups, 1, -1)
    grouped = codes.view(groups, -1, codes.shape[1])
    return ((grouped - zero).float() * scales.float().unsqueeze(1)).view_as(codes)


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    return (packed.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
