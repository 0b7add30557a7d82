"""The low-rank arithmetic against its definition in float64, for any shape, rank and slicing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtk.adapters import arithmetic

sizes = st.integers(1, 24)
scales = st.floats(-4, 4)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None)
@given(
    sizes, sizes, st.lists(st.tuples(st.integers(1, 9), scales), min_size=1, max_size=3), st.booleans(), sizes, sizes
)
def test_sliced_sums_are_the_sum(out: int, inp: int, updates: list, transposed: bool, seed: int, cut: int) -> None:
    pairs = [
        (drawn(seed + i, rank, inp), drawn(seed + 99 + i, out, rank), scale) for i, (rank, scale) in enumerate(updates)
    ]
    delta = sum(scale * (b.double() @ a.double()) for a, b, scale in pairs)
    weight = drawn(seed + 7, *((inp, out) if transposed else (out, inp)))
    left, right = arithmetic.stack([arithmetic.factors(a, b, scale, transposed=transposed) for a, b, scale in pairs])
    cut = min(cut, len(weight))
    parts = [weight[:cut].clone(), weight[cut:].clone()]
    arithmetic.add_update_(parts[0], left[:cut], right)
    arithmetic.add_update_(parts[1], left[cut:], right)
    expected = weight.double() + (delta.T if transposed else delta)
    torch.testing.assert_close(torch.cat(parts).double(), expected, atol=1e-4, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(2, 24), st.integers(1, 6), scales, sizes)
def test_dora_gives_each_output_its_magnitude(out: int, inp: int, rank: int, scale: float, seed: int) -> None:
    a, b, weight = drawn(seed, rank, inp), drawn(seed + 1, out, rank), drawn(seed + 2, out, inp)
    magnitude = drawn(seed + 3, out).abs() + 0.1
    summed = arithmetic.add_update_(weight.clone(), *arithmetic.factors(a, b, scale, transposed=False))
    rows = arithmetic.scale_rows_(summed.clone(), magnitude)
    torch.testing.assert_close(rows.norm(dim=1), magnitude, atol=1e-5, rtol=1e-5)
    # Direction is kept, and the transposed way gives the transposed weight, its norms summed over slices of rows.
    torch.testing.assert_close(
        rows * summed.norm(dim=1, keepdim=True), summed * magnitude[:, None], atol=1e-4, rtol=1e-4
    )
    columns = arithmetic.add_update_(weight.T.clone(), *arithmetic.factors(a, b, scale, transposed=True))
    norms = sum(arithmetic.column_squares(part) for part in columns.split(5)).sqrt().float()
    torch.testing.assert_close(arithmetic.scale_columns_(columns, magnitude, norms), rows.T, atol=1e-4, rtol=1e-4)
