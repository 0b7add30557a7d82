"""Packing 4- and 8-bit codes into int32 words, lowest bits first: shared by the gptq, awq and compressed-tensors containers."""

from __future__ import annotations

import torch


def pack_int32(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] uint8 codes -> [rows, n * bits / 32] int32, the first code in the lowest bits.

    n must be a multiple of 32 / bits. Little-endian bytes make a pair of 4-bit codes one byte, low nibble first.
    """
    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    elif bits != 8:
        raise ValueError(f"{bits} bits")
    return codes.contiguous().view(torch.int32)


def unpack_int32(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_int32`: [rows, w] int32 -> [rows, w * 32 / bits] uint8."""
    raw = words.contiguous().view(torch.uint8)
    if bits == 8:
        return raw
    if bits != 4:
        raise ValueError(f"{bits} bits")
    return torch.stack((raw & 15, raw >> 4), dim=-1).reshape(raw.shape[0], -1)
