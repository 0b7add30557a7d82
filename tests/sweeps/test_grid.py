"""The grid of a sweep: what --grid says, and the variants that follow."""

from __future__ import annotations

import pytest

from qtk.errors import InputError
from qtk.sweeps.grid import read_grid, variants


def test_the_variants_are_the_product_in_order() -> None:
    found = variants(read_grid(["quantize.method=gptq, awq", "quantize.group_size=32,64"]))
    assert [variant.name for variant in found] == [
        "method-gptq.group-size-32",
        "method-gptq.group-size-64",
        "method-awq.group-size-32",
        "method-awq.group-size-64",
    ]
    assert found[1].set_texts == ("quantize.method=gptq", "quantize.group_size=64")
    assert found[1].words == "method gptq, group_size 64"


def test_values_with_commas_stand_in_a_list() -> None:
    (axis,) = read_grid(['bench.latency.shapes=["16/8,64/32", 16/8, [1, 2], null]'])
    assert axis.values == ("16/8,64/32", "16/8", "[1, 2]", "null")


def test_names_are_names_of_directories_and_differ() -> None:
    found = variants(read_grid(["quantize.calibration=./a.jsonl,/a.jsonl,../a.jsonl"]))
    names = [variant.name for variant in found]
    assert names == ["calibration-a-jsonl", "calibration-a-jsonl-2", "calibration-a-jsonl-3"]


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ([], "there is no --grid"),
        (["quantize.bits"], "write it as KEY=VALUE,VALUE"),
        (["quantize.bits=4,,8"], "a value is empty"),
        (["quantize.bits=4,4"], "4 stands there twice"),
        (["a.b=1", "a.b=2"], "a.b is given twice"),
        (["a.b=[1"], "not YAML"),
        (["a.b=" + ",".join(map(str, range(40))), "a.c=" + ",".join(map(str, range(40)))], "1600 variants"),
    ],
)
def test_what_is_not_a_grid(texts: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_grid(texts)
