"""NF4 rounding against bitsandbytes, whose dequantize_4bit runs on the CPU."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtk.adapters import nf4

SHAPES = [(64, 64), (576, 1536), (49, 576), (1, 64), (3, 192), (1000, 256)]


@pytest.fixture(scope="module")
def functional() -> ModuleType:
    """bitsandbytes' functions. Imported by the tests that need them, because the import takes seconds in every worker."""
    return pytest.importorskip("bitsandbytes.functional")


def quantized(functional: ModuleType, weight: torch.Tensor):
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(codes, state), functional.dequantize_blockwise(
        state.absmax, state.state2
    ) + state.offset


def round_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    absmax = nf4.block_absmax(weight)
    return nf4.rounded(weight, absmax, nf4.double_quantized(absmax))


def test_the_levels_are_bitsandbytes_own(functional: ModuleType) -> None:
    assert torch.equal(nf4.dynamic_levels(), functional.create_dynamic_map())
    assert torch.equal(torch.tensor(nf4.LEVELS), functional.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_and_values_are_bit_for_bit_the_same(
    functional: ModuleType, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02).to(dtype)
    expected, restored = quantized(functional, weight)
    assert torch.equal(nf4.rounded(weight, nf4.block_absmax(weight), restored), expected.to(torch.bfloat16))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (1, 64)])  # one block leaves nothing to round
def test_block_magnitudes_go_to_the_nearest_level(functional: ModuleType, shape: tuple[int, int]) -> None:
    """bitsandbytes' CPU code misses the nearest level now and then within 2e-5 of a midpoint; its CUDA code, which the
    adapters were trained with, takes the nearest. So: the nearest everywhere, and equal to the CPU code elsewhere.
    """
    absmax = nf4.block_absmax(torch.randn(shape, generator=torch.Generator().manual_seed(4)))
    ours = nf4.double_quantized(absmax)
    offset = absmax.mean()
    levels = functional.create_dynamic_map()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    theirs = functional.dequantize_blockwise(codes, state) + offset
    scale = state.absmax.repeat_interleave(256)[: len(absmax)]
    distances = ((absmax - offset) / scale).unsqueeze(1).sub(levels).abs().sort(dim=1).values
    on_midpoint = (distances[:, 1] - distances[:, 0]) < 4e-5
    assert torch.equal(ours[~on_midpoint], theirs[~on_midpoint])
    assert on_midpoint.float().mean() < 0.02
    nearest = ((ours - offset) / scale - (absmax - offset) / scale).abs()
    assert (nearest <= distances[:, 0] + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_rounding_in_pieces_is_rounding_whole(rows: int, columns: int, seed: int, scale: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    whole = round_to_nf4(weight)
    absmax = nf4.block_absmax(weight)
    restored = nf4.double_quantized(absmax)
    flat, cut = weight.view(-1), len(absmax) // 2
    pieces = [
        nf4.rounded(flat[: cut * 64], absmax[:cut], restored[:cut]),
        nf4.rounded(flat[cut * 64 :], absmax[cut:], restored[cut:]),
    ]
    assert whole.dtype == torch.bfloat16
    assert torch.equal(torch.cat(pieces).view(rows, columns), whole)
    # No value is farther from its own than half the widest gap between levels, plus what 8 and 16 bits cost.
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % 64)).view(-1, 64)
    error = (torch.nn.functional.pad(whole.float().view(-1), (0, -flat.numel() % 64)).view(-1, 64) - blocks).abs()
    spread = (absmax - absmax.mean()).abs().max()
    assert (error <= 0.16 * absmax.unsqueeze(1) + 0.01 * spread + 2**-8 * (absmax.unsqueeze(1) + spread)).all()


def test_zeros_and_equal_blocks_stay_what_they_are() -> None:
    assert torch.equal(round_to_nf4(torch.zeros(4, 64)), torch.zeros(4, 64, dtype=torch.bfloat16))
    assert torch.equal(round_to_nf4(torch.full((4, 64), -0.5)), torch.full((4, 64), -0.5, dtype=torch.bfloat16))
