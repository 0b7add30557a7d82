"""Every container: pack and unpack are inverse, what is laid out is what is packed, and what does not fit is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError
from qtk.quantization.formats.registry import FORMATS, checkpoint_format, format_of
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.repack import repack
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

# (format, bits, symmetric) that each container can hold.
HOLDS = [
    ("gptq", 4, True),
    ("gptq", 4, False),
    ("gptq", 8, True),
    ("gptq", 8, False),
    ("awq", 4, True),
    ("awq", 4, False),
    ("modelopt", 4, True),
    ("compressed-tensors", 4, True),
    ("compressed-tensors", 4, False),
    ("compressed-tensors", 8, True),
    ("compressed-tensors", 8, False),
]


class InMemory:
    """Stands where a checkpoint directory does: tensors by name."""

    path = "memory"

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str, *, finite: bool = False) -> torch.Tensor:
        return self.tensors[name]


def random_linear(seed: int, out: int, groups: int, group: int, bits: int, symmetric: bool) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, groups * group), generator=generator, dtype=torch.uint8)
    scales = torch.randn(out, groups, generator=generator).half()  # half of them negative
    zeros = torch.randint(1, 2**bits, (out, groups), generator=generator, dtype=torch.uint8)
    zeros[0, 0] = 1  # at least one that is not the symmetric zero point
    return QuantizedLinear(codes, scales, None if symmetric else zeros, bits, group)


@pytest.mark.parametrize(("name", "bits", "symmetric"), HOLDS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    out=st.integers(1, 6).map(lambda n: 8 * n),
    groups=st.integers(1, 4),
    size=st.sampled_from([32, 64, 128]),
)
def test_unpack_undoes_pack(name: str, bits: int, symmetric: bool, seed: int, out: int, groups: int, size: int) -> None:
    container = FORMATS[name]
    group = max(size, 64) if name == "modelopt" else size
    linear = random_linear(seed, out, groups, group, bits, symmetric)
    scheme = LinearScheme(bits, group, symmetric)
    module = "model.layers.0.mlp.down_proj"
    assert container.refusals(module, linear.codes.shape, scheme) == []
    tensors = container.pack(module, linear)
    laid_out = {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    assert laid_out == container.specs(module, linear.codes.shape, scheme)
    back = container.unpack(InMemory(tensors), module, scheme)
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.scales.float(), linear.scales.float())
    assert (back.zeros is None) == symmetric
    assert symmetric or torch.equal(back.zeros, linear.zeros)
    assert (back.bits, back.group_size) == (bits, group)


@pytest.mark.parametrize(("name", "bits", "symmetric"), HOLDS)
def test_a_written_checkpoint_reads_back(
    tiny, tmp_path, name: str, bits: int, symmetric: bool, rounded, write_quantized
) -> None:
    default = LinearScheme(bits, 64 if name == "modelopt" else 32, symmetric)
    out = write_quantized(tiny("qwen2"), tmp_path / "out", name, default)
    read, source = ModelWeights.open(out), ModelWeights.open(tiny("qwen2"))
    assert read.scheme.default == default
    assert read.scheme.modules["lm_head"].bits == 16
    for module, _ in source.spec.all_linears():
        expected = rounded(source.float_linear(module, torch.float32), default)
        linear = read.linear(module)
        assert isinstance(linear, QuantizedLinear)
        assert torch.equal(linear.codes, expected.codes)
        assert torch.equal(linear.dequantize(), expected.dequantize())
    assert read.bias("model.layers.0.self_attn.q_proj") is not None


@pytest.mark.parametrize("name", ["gptq", "compressed-tensors"])
def test_mixed_settings_survive(tiny, tmp_path, name: str, write_quantized) -> None:
    overrides = {
        "lm_head": LinearScheme(8, 32, True),
        "model.layers.1.mlp.down_proj": LinearScheme(8, 64, False),
        "model.layers.2.mlp.down_proj": LinearScheme(16, 64, True),
    }
    out = write_quantized(tiny("llama"), tmp_path / "out", name, LinearScheme(4, 64, True), overrides)
    read = ModelWeights.open(out)
    for module, expected in overrides.items():
        found = read.scheme.modules[module]
        assert found.bits == expected.bits
        if found.bits < 16:
            assert found == expected
            linear = read.linear(module)
            assert isinstance(linear, QuantizedLinear)
            assert (linear.bits, linear.group_size, linear.symmetric) == (8, expected.group_size, expected.symmetric)
        else:
            assert isinstance(read.linear(module), torch.Tensor)


@pytest.mark.parametrize("name", ["awq", "modelopt"])
def test_one_setting_containers_refuse_a_mix(name: str) -> None:
    default = LinearScheme(4, 64, True)
    modules = {"a.q_proj": default, "a.k_proj": LinearScheme(4, 32, True), "lm_head": LinearScheme(16, 64, True)}
    (reason,) = FORMATS[name].scheme_refusals(QuantizationScheme(default, modules))
    assert "a.k_proj" in reason
    assert "groups of 32" in reason


def test_modelopt_refuses_a_torn_fused_set() -> None:
    default, left = LinearScheme(4, 64, True), LinearScheme(16, 64, True)
    modules = {"a.q_proj": default, "a.k_proj": left, "a.v_proj": default, "b.gate_proj": left, "b.up_proj": left}
    (reason,) = FORMATS["modelopt"].scheme_refusals(QuantizationScheme(default, modules))
    assert "k_proj 16 bits" in reason
    assert reason.startswith("a:")


@pytest.mark.parametrize(
    ("name", "shape", "scheme", "word"),
    [
        ("gptq", (12, 64), LinearScheme(4, 32, True), "12 outputs"),
        ("gptq", (16, 36), LinearScheme(4, 36, True), "36 inputs"),
        ("gptq", (16, 64), LinearScheme(3, 32, True), "3 bits"),
        ("awq", (12, 64), LinearScheme(4, 32, True), "12 outputs"),
        ("awq", (16, 64), LinearScheme(8, 32, True), "8 bits"),
        ("modelopt", (16, 64), LinearScheme(4, 64, False), "asymmetric"),
        ("modelopt", (16, 64), LinearScheme(8, 64, True), "8 bits"),
        ("modelopt", (15, 64), LinearScheme(4, 64, True), "15 outputs"),
        ("modelopt", (16, 64), LinearScheme(4, 32, True), "take 64 or 128"),
        ("compressed-tensors", (16, 36), LinearScheme(4, 36, True), "36 inputs"),
        ("compressed-tensors", (12, 64), LinearScheme(4, 32, False), "12 outputs"),
        ("compressed-tensors", (16, 64), LinearScheme(5, 32, True), "5 bits"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, shape: tuple[int, int], scheme: LinearScheme, word: str) -> None:
    reasons = FORMATS[name].refusals("model.layers.0.mlp.up_proj", shape, scheme)
    assert any(word in reason and "model.layers.0.mlp.up_proj" in reason for reason in reasons)


def test_a_zero_point_of_zero_does_not_fit_gptq_v1() -> None:
    linear = random_linear(0, 8, 2, 32, 4, symmetric=False)
    assert linear.zeros is not None
    linear.zeros[0, 1] = 0
    with pytest.raises(ValueError, match="zero point - 1"):
        FORMATS["gptq"].pack("m", linear)


def test_unknown_format_lists_the_known() -> None:
    with pytest.raises(InputError, match="compressed-tensors"):
        checkpoint_format("exl3")
    assert format_of("bitsandbytes") is None


def changed_config(directory, **values) -> None:
    import json

    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= values
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("gptq", {"checkpoint_format": "gptq_v2"}, "gptq_v2"),
        ("gptq", {"bits": 3}, "3 bits"),
        ("awq", {"version": "gemv"}, "gemv"),
        ("modelopt", {"quant_algo": "NVFP4"}, "NVFP4"),
        ("compressed-tensors", {"format": "float-quantized"}, "float-quantized"),
    ],
)
def test_variants_that_qtk_does_not_read_are_named(
    tiny, tmp_path, name: str, values: dict, word: str, write_quantized
) -> None:
    out = write_quantized(tiny("llama"), tmp_path / "out", name, LinearScheme(4, 64, True))
    changed_config(out, **values)
    with pytest.raises(InputError, match=word):
        ModelWeights.open(out)


@pytest.mark.parametrize("name", ["awq", "modelopt", "compressed-tensors", "gptq"])
def test_repacked_codes_are_the_same(tiny, tmp_path, name: str, write_quantized) -> None:
    source = write_quantized(
        tiny("qwen2"), tmp_path / "in", "gptq" if name != "gptq" else "awq", LinearScheme(4, 64, True)
    )
    (tmp_path / "out").mkdir()
    repack(ModelWeights.open(source), FORMATS[name], tmp_path / "out")
    before, after = ModelWeights.open(source), ModelWeights.open(tmp_path / "out")
    assert after.format is FORMATS[name]
    for module, linear in before.spec.all_linears():
        assert torch.equal(after.float_linear(module, torch.float32), before.float_linear(module, torch.float32))
        assert (after.bias(module) is None) == (not linear.bias)
    assert torch.equal(after.lm_head(torch.float32), before.lm_head(torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_of_activations_have_the_dtype_of_the_model(
    tmp_path, make_tiny, dtype: torch.dtype, write_quantized
) -> None:
    """TensorRT-LLM's loader copies pre_quant_scale into a tensor of the model's dtype."""
    model = make_tiny(tmp_path / "float", "llama", dtype=dtype)
    source = write_quantized(model, tmp_path / "in", "gptq", LinearScheme(4, 64, True), dtype=dtype)
    (tmp_path / "out").mkdir()
    repack(ModelWeights.open(source), FORMATS["modelopt"], tmp_path / "out")
    checkpoint = ModelWeights.open(tmp_path / "out").checkpoint
    scales = [name for name in checkpoint.names if name.endswith("pre_quant_scale")]
    assert len(scales) == 2 * 3
    assert {checkpoint.info(name).dtype for name in scales} == {dtype}


def test_repacking_refuses_what_does_not_fit(tiny, tmp_path, write_quantized) -> None:
    source = write_quantized(tiny("llama"), tmp_path / "in", "gptq", LinearScheme(4, 64, False))
    with pytest.raises(InputError, match="asymmetric") as caught:
        repack(ModelWeights.open(source), FORMATS["modelopt"], tmp_path)
    assert "layers.{0-2}.mlp.down_proj" in str(caught.value)
    with pytest.raises(InputError, match="not quantized"):
        repack(ModelWeights.open(tiny("llama")), FORMATS["modelopt"], tmp_path)


@pytest.mark.parametrize("name", ["gptq", "awq", "modelopt", "compressed-tensors"])
def test_a_damaged_checkpoint_is_named_on_opening(tiny, tmp_path, name: str, write_quantized) -> None:
    """Missing and misshapen tensors, and a config that is none, are sentences, whatever the container."""
    out = write_quantized(tiny("llama"), tmp_path / "out", name, LinearScheme(4, 64, True))
    tensors = load_file(out / "model.safetensors")
    scales = next(n for n in tensors if "layers.1.mlp.up_proj" in n and "scale" in n)
    save_file({n: t for n, t in tensors.items() if n != scales}, out / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"):
        ModelWeights.open(out).linear("model.layers.1.mlp.up_proj").dequantize()
    save_file(tensors | {scales: tensors[scales][:-1].contiguous()}, out / "model.safetensors")
    with pytest.raises(InputError, match=rf"{re.escape(scales)}: shape"):
        ModelWeights.open(out)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    for broken in ("gptq", [1], {"quant_method": name, "bits": "four", "config_groups": 7}):
        (out / "config.json").write_text(json.dumps({**config, "quantization_config": broken}))
        with pytest.raises(InputError):
            ModelWeights.open(out)


def test_whole_rows_as_one_group(tiny, tmp_path, write_quantized) -> None:
    """Group size -1, which other tools write for one scale a row."""
    out = write_quantized(tiny("llama"), tmp_path / "out", "gptq", LinearScheme(4, 128, True))
    tensors = load_file(out / "model.safetensors")
    for name in [
        n for n in tensors if "down_proj" in n
    ]:  # 256 inputs: two groups of 128, of which the first counts for all
        if name.endswith((".scales", ".qzeros")):
            tensors[name] = tensors[name][:1].contiguous()
        elif name.endswith(".g_idx"):
            del tensors[name]
    save_file(tensors, out / "model.safetensors")
    changed_config(out, group_size=-1)
    weights = ModelWeights.open(out)
    linear = weights.linear("model.layers.0.mlp.down_proj")
    assert isinstance(linear, QuantizedLinear)
    assert linear.group_size == 256
    assert weights.scheme.modules["model.layers.0.mlp.up_proj"].group_size == 128
