"""What each stage makes of a small fixed input, stored with the number of its results.

A change that gives other results has to raise the stage's number (qtk/checkpoint/result_versions.py), or runs would take what
an earlier qtk made for what this one makes. Then store what the failing test prints in data/results.json.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file

from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.bench.divergence_run import measure_divergence
from qtk.bench.options import DivergenceOptions
from qtk.calibration.options import CalibrationOptions
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.models.registry import spec_from_config
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

STORED = json.loads((Path(__file__).parent / "data" / "results.json").read_text())
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Weights that are the same on every processor and with every torch: multiples of 1/512 by integer arithmetic."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.int64)
    mixed = (count * 2654435761 + seed * 40503) % 4294967296
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 % 4294967296
    return ((mixed >> 16) % 129 - 64).float().view(shape) / 512


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, write_byte_tokenizer) -> Path:
    place = tmp_path_factory.mktemp("fixed") / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    write_byte_tokenizer(place)
    shapes = spec_from_config(CONFIG, "config").all_tensors()
    tensors = {
        name: torch.ones(shape) if name.endswith("norm.weight") else numbers(shape, seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "text.txt").write_text("def add(a, b):\n    return a + b\n\n\nclass Point:\n    x = 0\n" * 12)
    return place


def changes(fixed: Path, weights: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """How far each linear is from the model's: the sum of magnitudes, and the same with changing weights, so that an exchange
    shows."""
    figures, model = {}, Checkpoint(fixed)
    for name, tensor in weights.items():
        sizes = (tensor - model.tensor(f"{name}.weight")).double().abs().flatten()
        figures[name] = [float(sizes.sum()), float((sizes * (torch.arange(len(sizes)) % 7)).sum())]
    return figures


def merged(fixed: Path, out: Path) -> dict[str, Any]:
    adapter = out / "adapter"
    adapter.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{prefix}.lora_A.weight": numbers((4, 64), 91), f"{prefix}.lora_B.weight": numbers((64, 4), 92)}
    save_file(factors, adapter / "adapter_model.safetensors")
    merge(fixed, [adapter], out / "merged", MergeOptions())
    name = "model.layers.0.self_attn.q_proj"
    return changes(fixed, {name: Checkpoint(out / "merged").tensor(f"{name}.weight")})


def quantized(fixed: Path, out: Path) -> dict[str, Any]:
    figures = {}
    calibration = CalibrationOptions(calibration=str(fixed / "text.txt"), samples=8, seq_len=64)
    for method in ("rtn", "gptq", "awq"):
        quantize_model(fixed, out / method, QuantizeOptions(method=method, group_size=32), calibration)
        weights = ModelWeights.open(out / method)
        linears = {name: weights.float_linear(name, torch.float32) for name, _ in weights.spec.all_linears()}
        figures |= {f"{method} {name}": values for name, values in changes(fixed, linears).items()}
    return figures


def built(fixed: Path, out: Path) -> dict[str, Any]:
    options = QuantizeOptions(method="rtn", group_size=32)
    quantize_model(fixed, out / "quantized", options, CalibrationOptions())
    figures: dict[str, Any] = {}
    for name, model in (("float", fixed), ("int4", out / "quantized")):
        engine = build_engine(model, out / name, BuildOptions(max_input_len=32, max_output_len=8))
        [stage] = engine.stages
        graph = onnx.load(str(out / name / stage.file), load_external_data=False).graph
        figures[name] = dict(sorted(Counter(node.op_type for node in graph.node).items()))
        figures[f"{name} ports"] = [port.name for port in (*graph.input, *graph.output)]
    return figures


def diverged(fixed: Path, out: Path) -> dict[str, Any]:
    quantize_model(fixed, out / "int4", QuantizeOptions(method="rtn", group_size=32), CalibrationOptions())
    options = DivergenceOptions(data=(str(fixed / "text.txt"),), rows=4, seq_len=32)
    pooled = measure_divergence(out / "int4", fixed, options).pooled
    return {"kl": [pooled.kl.mean, pooled.kl.standard_error], "perplexity": [pooled.perplexity]}


STAGES = {"merge": merged, "quantize": quantized, "build": built, "divergence": diverged}


def alike(stored: Any, now: Any) -> bool:
    """Equal up to what another processor's order of sums makes of a figure."""
    if isinstance(stored, dict) and isinstance(now, dict):
        return stored.keys() == now.keys() and all(alike(stored[name], now[name]) for name in stored)
    if isinstance(stored, list) and stored and isinstance(stored[0], float):
        return now == pytest.approx(stored, rel=2e-3)
    return stored == now


@pytest.mark.parametrize("stage", STAGES)
def test_other_results_have_another_number(fixed, tmp_path, monkeypatch, stage: str) -> None:
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32")
    now = {"version": RESULT_VERSIONS[stage], "results": STAGES[stage](fixed, tmp_path)}
    assert alike(STORED[stage], now), (
        f"`qtk {stage}` gives other results than stored. If that is meant, raise RESULT_VERSIONS[{stage!r}], and store in "
        f"tests/recipes/data/results.json: {json.dumps({stage: now})}"
    )
