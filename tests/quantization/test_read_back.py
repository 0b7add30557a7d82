"""What was written is read back: damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import calibration_rows
from qtk.errors import GateFailed
from qtk.models.tokenizer import TextTokenizer
from qtk.quantization.checkpoint_run import QuantizationTask
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.read_back import read_back, room_for_texts

SMALL = CalibrationOptions(samples=8, seq_len=64)


@pytest.fixture
def written(tiny, tmp_path) -> tuple[Path, QuantizationTask]:
    """A quantized checkpoint, the task that it came from, and what its blocks put out while it was good."""
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(method="rtn"), SMALL)
    good, source = ModelWeights.open(tmp_path / "out"), ModelWeights.open(tiny("llama"))
    rows = calibration_rows(TextTokenizer(tiny("llama")), SMALL, 64)
    task = QuantizationTask(
        source=source, scheme=good.scheme, container=good.format, effort="default", rows=rows, judged_on=None,
        device=torch.device("cpu"), compute_dtype=torch.float32, activation_bytes=1 << 30, seed=0,
    )  # fmt: skip
    probe = task.probe(tmp_path / "out")
    for layer in range(good.spec.num_layers):
        probe.record(layer, source, good.block(layer, torch.float32))
    return tmp_path / "out", task


def damage(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_what_was_written_well_is_compared_to_the_last_digit(written) -> None:
    directory, task = written
    found = read_back(directory, task, text_room=1 << 30)
    assert (found.linears, found.blocks, found.tokens) == (21, 3, 4 * 32)
    assert found.largest_difference < 1e-6
    assert found.texts == 4
    assert found.text
    assert not read_back(directory, task, text_room=None).text


@pytest.mark.parametrize("kind", ["codes", "scales", "norm"])
def test_a_block_that_computes_something_else_is_named(written, kind: str) -> None:
    """Each value is one that could be right: only what the block puts out tells."""
    directory, task = written

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if kind == "codes":
            tensors["model.layers.1.mlp.down_proj.qweight"][0, :8] ^= 0x11111111
        elif kind == "scales":
            scales = tensors["model.layers.1.mlp.down_proj.scales"]
            scales[0] = scales[0].roll(1)
        else:
            tensors["model.layers.1.input_layernorm.weight"] *= 1.01

    damage(directory, change)
    with pytest.raises(GateFailed) as caught:
        read_back(directory, task, text_room=None)
    [line] = str(caught.value).splitlines()[1:]
    assert line.strip().startswith("model.layers.1: computes something else")


def test_scales_beyond_float16_are_named(written) -> None:
    directory, task = written

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (0, 2):
            tensors[f"model.layers.{layer}.mlp.up_proj.scales"][0, 3] = float("inf")

    damage(directory, change)
    with pytest.raises(GateFailed) as caught:
        read_back(directory, task, text_room=None)
    assert "model.layers.{0,2}.mlp.up_proj: " in str(caught.value)


def test_what_is_not_what_was_intended_is_named(written) -> None:
    """Scales and norms that were never written, and a scheme other than the one that was settled."""
    directory, task = written

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.scales"].zero_()
        tensors["model.layers.2.input_layernorm.weight"].zero_()

    damage(directory, change)
    name = "model.layers.0.mlp.down_proj"
    modules = {**task.scheme.modules, name: replace(task.scheme.modules[name], bits=8)}
    with pytest.raises(GateFailed) as caught:
        read_back(directory, replace(task, scheme=replace(task.scheme, modules=modules)), text_room=None)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == [
        "model.layers.2.input_layernorm.weight",
        name,
        "model.layers.1.mlp.up_proj",
        "model.layers.2",
    ]
    assert "4 bits in groups of 128, not 8 in groups of 128" in lines[1]
    assert "is zero" in lines[2]


def test_nothing_quantized_is_no_success(written, tiny) -> None:
    _, task = written
    with pytest.raises(GateFailed, match="float model"):
        read_back(tiny("llama"), task, text_room=None)


@pytest.mark.parametrize("choice", ["auto", "always", "never"])
def test_texts_are_written_where_the_model_fits_or_they_are_asked_for(written, choice: str) -> None:
    directory, task = written
    spec = task.source.spec
    with_room, without = room_for_texts(spec, choice, None), room_for_texts(spec, choice, 0.001)
    assert (with_room is None) is (choice == "never")
    assert with_room is None or with_room > 4 * spec.parameters()
    assert without == (0 if choice == "always" else None), "--memory is a promise that texts keep as well"
    if without is not None:
        assert read_back(directory, task, text_room=without).texts == 4


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
