"""What was written is read back: damage is named."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import safetensors.torch

from qtk.calibration.options import CalibrationOptions
from qtk.errors import GateFailed
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.read_back import read_back
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

SMALL = CalibrationOptions(samples=8, seq_len=64)


def test_scales_beyond_float16_are_named(tiny, tmp_path) -> None:
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(), SMALL)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "out", broken)
    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    for layer in (0, 2):
        tensors[f"model.layers.{layer}.mlp.up_proj.scales"][0, 3] = float("inf")
    safetensors.torch.save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateFailed) as caught:
        read_back(
            broken, ModelWeights.open(tmp_path / "out").scheme, ModelWeights.open(tiny("llama")), None, limit_bytes=0
        )
    assert "model.layers.{0,2}.mlp.up_proj: " in str(caught.value)


def test_what_is_not_what_was_intended_is_named(tiny, tmp_path) -> None:
    """Scales and norms that were never written, and a scheme other than the one that was settled."""
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(method="rtn"), SMALL)
    scheme, source = ModelWeights.open(tmp_path / "out").scheme, ModelWeights.open(tiny("llama"))
    tensors = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"].zero_()
    tensors["model.layers.2.input_layernorm.weight"].zero_()
    safetensors.torch.save_file(tensors, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    name = "model.layers.0.mlp.down_proj"
    modules = {**scheme.modules, name: replace(scheme.modules[name], bits=8)}
    with pytest.raises(GateFailed) as caught:
        read_back(tmp_path / "out", replace(scheme, modules=modules), source, None, limit_bytes=0)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == [
        "model.layers.2.input_layernorm.weight",
        name,
        "model.layers.1.mlp.up_proj",
    ]
    assert "4 bits in groups of 128, not 8 in groups of 128" in lines[1]
    assert "never written" in lines[2]


def test_nothing_quantized_is_no_success(tiny) -> None:
    source = ModelWeights.open(tiny("llama"))
    modules = {name: LinearScheme(4, 64, True) for name, _ in source.spec.all_linears()}
    intended = QuantizationScheme(LinearScheme(4, 64, True), modules)
    with pytest.raises(GateFailed, match="float model"):
        read_back(tiny("llama"), intended, source, None, limit_bytes=0)


def test_a_weight_too_large_for_float16_scales_ends_with_the_layers_name(tiny, tmp_path, run_qtk) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny("llama"), model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"][2, 9] = 3e6
    safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    answer = run_qtk("quantize", model, "-o", tmp_path / "out", "--samples", 8, "--seq-len", 64)
    assert answer.returncode == 2, answer.stderr
    assert "model.layers.0.self_attn.o_proj: its weights are too large for scales in float16" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
