"""The runtimes' records: one test for each, and sentences that name every offender and the nearest setting that works."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qtk.errors import InputError
from qtk.targets.gpu import gpu_profiles
from qtk.targets.refusals import LinearPlan, compressed, defaults_for, refusals
from qtk.targets.runtimes import RUNTIMES, runtime
from qtk.targets.serving import StoredAs, loading_runtimes

GOOD = LinearPlan(256, 256, 4, 64, True)


def model(plan: LinearPlan, layers: int = 3) -> dict[str, LinearPlan]:
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    return {f"model.layers.{layer}.{name}": plan for layer in range(layers) for name in names}


# runtime -> (preferred container, an SM it takes, SMs it refuses, plan fields that it refuses and what the sentence says)
RECORDS = {
    "onnxruntime": ("gptq", None, [], [({"bits": 3}, "bits:4"), ({"group_size": 16}, "--group-size 32")]),
    "tensorrt": (
        "gptq",
        86,
        [75, 90, 100],
        [({"bits": 8}, "bits:4"), ({"symmetric": False}, "--sym"), ({"group_size": 16}, "--group-size 32")],
    ),
    "tensorrt-full": ("gptq", 90, [75], [({"symmetric": False}, "--sym"), ({"group_size": 32}, "--group-size 64")]),
    "tensorrt-edgellm": (
        "modelopt",
        86,
        [75, 89, 90],
        [
            ({"symmetric": False}, "--sym"),
            ({"group_size": 32}, "--group-size 64"),
            ({"out_features": 96}, "multiples of 64"),
        ],
    ),
    "tensorrt-llm": (
        "modelopt",
        90,
        [75, 100, 120],
        [
            ({"symmetric": False}, "--sym"),
            ({"group_size": 32}, "--group-size 64"),
            ({"out_features": 96}, "multiples of 64"),
            ({"bits": 8}, "bits:4"),
        ],
    ),
    "onnxruntime-genai": ("gptq", None, [], [({"group_size": 16}, "--group-size 32")]),
    "vllm": ("gptq", 86, [70], [({"group_size": 16}, "--group-size 32")]),
    "llama.cpp": ("gguf", None, [], [({"symmetric": False}, "--sym"), ({"group_size": 16}, "--group-size 32")]),
}


def test_a_container_that_is_read_with_symmetric_weights_only() -> None:
    """vLLM refuses gptq with zero points (tests/quantization/formats/test_vllm.py) and takes the others with them."""
    vllm, plans = runtime("vllm"), model(replace(GOOD, symmetric=False))
    (reason,) = refusals(vllm, 86, plans, container="gptq")
    assert "with symmetric weights only" in reason
    assert "--sym, or --container compressed-tensors" in reason
    assert refusals(vllm, 86, plans, container="awq") == []
    assert defaults_for(vllm, {"a": (256, 256)}, symmetric=False).container == "compressed-tensors"
    stored = StoredAs("gptq", 4, 64, False, False)
    assert "vllm" not in [record.name for record in loading_runtimes(stored)]
    assert "vllm" in [record.name for record in loading_runtimes(replace(stored, container="awq"))]


@pytest.mark.parametrize("name", RUNTIMES)
def test_record(name: str) -> None:
    container, sm, bad_sms, bad_plans = RECORDS[name]
    record = runtime(name)
    assert defaults_for(record, {"a": (256, 256)}).container == container
    assert refusals(record, sm, model(GOOD), container=container, signed_scales=record.signed_scales) == []
    assert refusals(record, sm, model(replace(GOOD, bits=16, group_size=7, symmetric=False))) == []
    for bad in bad_sms:
        (reason,) = refusals(record, bad, model(GOOD))
        assert f"this GPU is SM{bad}" in reason
    for fields, said in bad_plans:
        (reason,) = refusals(record, sm, model(replace(GOOD, **fields)))
        assert said in reason
        assert "(12 linears)" in reason
    (reason,) = refusals(record, sm, model(GOOD), container="exl3")
    assert f"--container {container}" in reason


def test_every_backend_of_a_gpu_takes_its_sm() -> None:
    for profile in gpu_profiles():
        for backend in profile.backends:
            reasons = refusals(runtime(backend), profile.sm, model(GOOD))
            assert not reasons, (profile.name, backend, reasons)


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_refusal_that_a_new_quantization_cures_names_its_option(name: str) -> None:
    record = runtime(name)
    bad = model(replace(GOOD, bits=3, group_size=16, symmetric=False)) | {"lm_head": replace(GOOD, out_features=250)}
    for reason in refusals(record, record.min_sm, bad, signed_scales=True):
        assert "quantize with --" in reason


def test_only_full_tensorrt_refuses_negative_scales() -> None:
    refusing = [
        name for name, record in RUNTIMES.items() if refusals(record, record.min_sm, model(GOOD), signed_scales=True)
    ]
    assert refusing == ["tensorrt-full"]


def test_the_default_group_is_the_largest_that_divides_all() -> None:
    llm = runtime("tensorrt-llm")
    assert defaults_for(llm, {"a": (256, 512), "b": (256, 256)}).group_size == 128
    assert defaults_for(llm, {"a": (256, 576), "b": (256, 1536)}).group_size == 64
    assert defaults_for(llm, {"a": (256, 96)}).group_size == 64
    assert defaults_for(runtime("onnxruntime"), {"a": (256, 96)}).group_size == 32


def test_all_reasons_and_offenders_come_at_once() -> None:
    plans = model(GOOD) | {
        "model.layers.1.mlp.up_proj": replace(GOOD, symmetric=False),
        "model.layers.2.mlp.down_proj": replace(GOOD, group_size=32, in_features=288),
        "lm_head": replace(GOOD, bits=8),
    }
    reasons = refusals(runtime("tensorrt-llm"), 120, plans, container="gguf")
    text = "\n".join(reasons)
    assert len(reasons) == 6
    for word in ("SM120", "'gguf'", "lm_head", "layers.1.mlp.up_proj", "layers.2.mlp.down_proj", "bits:16"):
        assert word in text
    assert "for this GPU: tensorrt, tensorrt-full, tensorrt-edgellm, vllm" in text


def test_a_rank_s_share_is_what_must_divide() -> None:
    record = runtime("tensorrt-llm")
    assert refusals(record, 86, model(GOOD), tensor_parallel=4) == []
    (reason,) = refusals(record, 86, model(GOOD), tensor_parallel=8)[:1]
    assert "each of 8 ranks" in reason
    assert "a smaller --tp" in reason
    (reason,) = refusals(record, 86, model(replace(GOOD, group_size=128)), tensor_parallel=4)
    assert "[256, 64] in groups of 128" in reason
    assert "o_proj" in reason
    assert "q_proj" not in reason


def test_names_are_written_once_with_their_layers() -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1, 2, 5)]
    assert compressed(names) == "model.layers.{0-2,5}.mlp.up_proj (4 linears)"
    assert compressed(["model.layers.7.mlp.up_proj"]) == "model.layers.7.mlp.up_proj"
    assert compressed(["lm_head"]) == "lm_head"


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(InputError, match="tensorrt-edgellm"):
        runtime("tensorflow")
