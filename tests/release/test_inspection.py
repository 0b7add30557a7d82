"""`qtk inspect`: what it says of a quantized model is what the files hold."""

from __future__ import annotations

import pytest

from qtk.quantization.scheme_model import LinearScheme
from qtk.release.inspection import inspect_directory


@pytest.mark.parametrize(
    ("variant", "overrides", "counted"),
    [
        ("llama", {}, "21 linears 4 bits, group 32, symmetric; 1 linear in float"),
        (
            "llama",
            {"lm_head": LinearScheme(8, 32, True)},
            "21 linears 4 bits, group 32, symmetric; 1 linear 8 bits, group 32, symmetric",
        ),
        ("llama-tied", {}, "21 linears 4 bits, group 32, symmetric"),
    ],
    ids=["float head", "quantized head", "tied head"],
)
def test_every_linear_is_counted_with_the_head(
    tiny, tmp_path, variant: str, overrides: dict, counted: str, write_quantized
) -> None:
    out = write_quantized(tiny(variant), tmp_path / "out", "gptq", LinearScheme(4, 32, True), overrides)
    assert inspect_directory(out).facts["quantization"] == f"container gptq: {counted}"


def test_a_float_model_is_not_quantized(tiny) -> None:
    assert inspect_directory(tiny()).facts["quantization"] == "none"
