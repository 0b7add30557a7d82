"""Lists of offenders are short: what differs in the number of its layer only is one line."""

from __future__ import annotations

import pytest

from qtk.errors import by_layer, listing
from qtk.sizes import gpu_size_text, size_text


def test_complaints_of_many_layers_are_one_line() -> None:
    lines = [f"model.layers.{n}.mlp.{name}: 576 inputs" for n in range(30) for name in ("up_proj", "down_proj")]
    assert by_layer(lines) == [
        "model.layers.{0-29}.mlp.up_proj: 576 inputs",
        "model.layers.{0-29}.mlp.down_proj: 576 inputs",
    ]
    assert (
        listing(lines)
        == "  model.layers.{0-29}.mlp.up_proj: 576 inputs\n  model.layers.{0-29}.mlp.down_proj: 576 inputs"
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["blk.0.attn_q", "blk.1.attn_q", "blk.3.attn_q"], ["blk.{0-1,3}.attn_q"]),
        (["layers.1.q, layers.1.k alike", "layers.2.q, layers.2.k alike"], ["layers.{1-2}.q, layers.{1-2}.k alike"]),
        (["layers.7.q: 5"], ["layers.7.q: 5"]),
        (["layers.1.q: 5", "layers.2.q: 6"], ["layers.1.q: 5", "layers.2.q: 6"]),
        (["layers.1.q and layers.2.q"], ["layers.1.q and layers.2.q"]),
        (["2 layers", "3 layers"], ["2 layers", "3 layers"]),
        (["lm_head", "layers.0.q", "layers.1.q"], ["lm_head", "layers.{0-1}.q"]),
    ],
)
def test_only_the_number_of_a_layer_is_put_together(lines: list[str], expected: list[str]) -> None:
    assert by_layer(lines) == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812, "812 bytes"),
        (4_585, "4.58 kB"),
        (999_700, "1.00 MB"),
        (114_500_000, "114 MB"),
        (950_400_000, "950 MB"),
        (25_276_500_000, "25.3 GB"),
        (85_899_345_920, "85.9 GB"),
        (0, "0 bytes"),
    ],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size_text(count) == text


def test_the_memory_of_a_gpu_is_in_gib() -> None:
    assert (gpu_size_text(24 * 2**30), gpu_size_text(2**29)) == ("24.0 GiB", "0.500 GiB")
