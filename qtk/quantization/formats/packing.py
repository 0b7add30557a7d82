"""Packing 4- and 8-bit codes into int32 words, lowest bits first: shared by the gptq, awq and compressed-tensors containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_int32(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] uint8 codes -> [rows, n * bits / 32] int32, the first code in the lowest bits.

    n must be a multiple of 32 / bits. Little-endian bytes make a pair of 4-bit codes one byte, low nibble first.
    """

    import torch

    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    elif bits != 8:
        raise ValueError(f"{bits} bits")
    rows = codes.shape[0]
    # Flat first: torch calls the strides of a single transposed row contiguous and then refuses to view it.
    return codes.reshape(-1).contiguous().view(torch.int32).view(rows, -1)


def unpack_int32(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_int32`: [rows, w] int32 -> [rows, w * 32 / bits] uint8."""

    import torch

    raw = words.reshape(-1).contiguous().view(torch.uint8).view(words.shape[0], -1)
    if bits == 8:
        return raw
    if bits != 4:
        raise ValueError(f"{bits} bits")
    return torch.stack((raw & 15, raw >> 4), dim=-1).reshape(raw.shape[0], -1)
