"""What was written is read back: damage is named, generation runs from the files, loops are noticed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import as_token_rows
from qtk.errors import GateFailed
from qtk.quantization import read_back as module
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.read_back import read_back
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

SMALL = CalibrationOptions(samples=8, seq_len=64)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30])  # every block read anew for each token; all kept
def test_generates_what_transformers_does(tiny, tmp_path, limit_bytes: int) -> None:
    """Of a float copy of the quantized weights, in the dtype that the check computes in."""
    import transformers

    report = quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(), SMALL)
    assert report.read_back.linears == 21
    assert 4.1 < report.read_back.bits_per_weight < 4.5  # 4 + 16 / 128, and the zero points and g_idx of the container
    written = ModelWeights.open(tmp_path / "out")
    dtype = module.fast_matmul_dtype()
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.copy_(written.float_linear(name.removesuffix(".weight"), dtype))
        prompts = torch.tensor([[5, 6, 7], [9, 8, 9]])
        ours = torch.tensor(module._generate(written, prompts.tolist(), limit_bytes))
        logits = model(torch.cat((prompts, ours), 1)).logits[:, 2:-1].float()
    # Another order of sums may turn a tie: each token is the best one, or as good within rounding.
    chosen = logits.gather(2, ours[:, :, None])[:, :, 0]
    assert ours.shape == (2, 32)
    assert (logits.amax(-1) - chosen <= 0.02 * logits.abs().max()).all()


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
    assert all(f"model.layers.{layer}.mlp.up_proj: " in str(caught.value) for layer in (0, 2))


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


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 32, True),
        ([1, 2, 3, 4] * 8, True),
        (list(range(16)) + [5, 6] * 8, True),
        (list(range(16)) + list(range(8)) * 2, True),
        (list(range(16)) * 2, True),
        (list(range(12)) + list(range(10)) * 2, True),
        (list(range(32)), False),
        ([*range(31), 30], False),
    ],
)
def test_a_loop_is_noticed(tokens: list[int], expected: bool) -> None:
    assert module._repeats(tokens) is expected


LOOP, NONE = [3] * 32, list(range(32))


@pytest.mark.parametrize(
    ("quantized", "of_float", "loops", "repeats"),
    [
        ([LOOP], [LOOP], 1, False),
        ([LOOP], [NONE], 1, True),
        ([LOOP, NONE, LOOP, NONE], [NONE] * 4, 2, False),
        ([LOOP, NONE, LOOP, LOOP], [NONE, NONE, LOOP, LOOP], 3, True),
        ([LOOP, NONE, LOOP, LOOP], [LOOP, NONE, LOOP, LOOP], 3, False),
    ],
)
def test_only_loops_that_the_float_model_does_not_make_are_reported(
    tiny, tmp_path, monkeypatch, quantized, of_float, loops, repeats
) -> None:
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(method="rtn"), SMALL)
    source = ModelWeights.open(tiny("llama"))
    monkeypatch.setattr(module, "_generate", lambda weights, *_: of_float if weights is source else quantized)
    scheme = ModelWeights.open(tmp_path / "out").scheme
    found = read_back(tmp_path / "out", scheme, source, None, limit_bytes=0)
    assert (found.texts, found.loops, found.repeats) == (len(quantized), loops, repeats)


def test_prompts_are_alike_in_length() -> None:
    rows = as_token_rows([list(range(100))] * 9 + [[1, 2, 3]], 100)
    assert [len(prompt) for prompt in module._prompts(rows)] == [64] * 4
    assert [len(prompt) for prompt in module._prompts(rows.split(8)[1])] == [3] * 2
