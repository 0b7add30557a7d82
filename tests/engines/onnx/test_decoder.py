"""The portable graph: valid ONNX in standard operators, and the numbers of transformers, by two runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.tiny_models import VARIANTS

from qtk.engines.onnx.decoder import GraphOptions, write_graph
from qtk.engines.onnx.ports import mask_name, stage_windows
from qtk.errors import InputError
from qtk.models.spec import ModelSpec
from qtk.peak_memory import PeakMemory
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme

TOKENS = 24
CACHE = 40
PORTABLE = {
    "Add", "Attention", "Cast", "Concat", "DequantizeLinear", "Gather", "GatherND", "Identity", "MatMul", "Mul",
    "RMSNormalization", "Reshape", "RotaryEmbedding", "Sigmoid", "Split", "TensorScatter", "Transpose",
}  # fmt: skip


def graph_of(model: Path, directory: Path, **options: object) -> tuple[ModelSpec, Path]:
    weights = ModelWeights.open(model)
    directory.mkdir(exist_ok=True)
    settings = GraphOptions(**{"dtype": torch.float32, "positions": 64, **options})  # type: ignore[arg-type]
    return weights.spec, write_graph(weights, directory, settings)


def feed(
    spec: ModelSpec, ids: np.ndarray, start: int, past: dict[str, np.ndarray], dtype: type
) -> dict[str, np.ndarray]:
    """Inputs of one run over ids [batch, tokens] written at slot `start`, every position's logits wanted."""
    batch, tokens = ids.shape
    positions = np.broadcast_to(np.arange(start, start + tokens), (batch, tokens)).copy()
    values: dict[str, np.ndarray] = {
        "input_ids": ids,
        "position_ids": positions,
        "write_indices": np.full(batch, start, np.int64),
        "logits_positions": np.broadcast_to(np.arange(tokens)[:, None], (batch, tokens, 1)).copy(),
    }
    slots, here = np.arange(CACHE), positions[:, None, :, None]
    for window in stage_windows(spec, (0, spec.num_layers)):
        mask = slots <= here
        values[mask_name(window)] = mask if window is None else mask & (slots > here - window)
    shape = (batch, spec.num_kv_heads, CACHE, spec.head_dim)
    for layer in range(spec.num_layers):
        for kind in ("key", "value"):
            values[f"past_{kind}.{layer}"] = past.get(f"present_{kind}.{layer}", np.zeros(shape, dtype))
    return values


def run_in_two(model: onnx.ModelProto | str, spec: ModelSpec, ids: np.ndarray, dtype: type) -> np.ndarray:
    """Logits of all positions from onnx.reference: all but the last token at once, then the last with the cache."""
    evaluator = ReferenceEvaluator(model)
    names = [output.name for output in evaluator.proto_.graph.output]
    first = dict(zip(names, evaluator.run(None, feed(spec, ids[:, :-1], 0, {}, dtype)), strict=True))
    last = evaluator.run(["logits"], feed(spec, ids[:, -1:], ids.shape[1] - 1, first, dtype))[0]
    return np.concatenate([first["logits"], last], axis=1).astype(np.float32)


def random_ids(tokens: int = TOKENS, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 320, (batch, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_runtime_gives_the_logits_of_transformers(tiny, tmp_path, variant: str, transformers_logits) -> None:
    """onnx.reference is written from the standard: so the graph means what it should, apart from any runtime's habits."""
    spec, path = graph_of(tiny(variant), tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 24)}
    assert {node.op_type for node in model.graph.node} <= PORTABLE
    ids = random_ids()
    expected = transformers_logits(tiny(variant), torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(run_in_two(model, spec, ids, np.float32), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_quantized_linears_stay_packed_and_mean_the_same(
    tiny, tmp_path, bits: int, symmetric: bool, transformers_logits, write_dequantized, write_quantized
) -> None:
    quantized = write_quantized(tiny("qwen2"), tmp_path / "q", "gptq", LinearScheme(bits, 32, symmetric))
    spec, path = graph_of(quantized, tmp_path / "graph")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    kinds = {
        onnx.TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer if i.name.endswith("proj.codes")
    }
    assert kinds == {f"{'INT' if symmetric else 'UINT'}{bits}"}
    ids = random_ids()
    meaning = write_dequantized(quantized, tmp_path / "float")
    expected = transformers_logits(meaning, torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(run_in_two(model, spec, ids, np.float32), expected, atol=2e-4, rtol=1e-3)


def test_one_model_may_mix_widths_groups_and_float_linears(
    tiny, tmp_path, transformers_logits, write_dequantized, write_quantized
) -> None:
    overrides = {
        "model.layers.0.self_attn.q_proj": LinearScheme(8, 64, False),
        "model.layers.1.mlp.down_proj": LinearScheme(16, 32, True),
        "lm_head": LinearScheme(4, 128, True),
    }
    quantized = write_quantized(tiny(), tmp_path / "q", "gptq", LinearScheme(4, 32, True), overrides)
    spec, path = graph_of(quantized, tmp_path / "graph")
    ids = random_ids()
    expected = transformers_logits(write_dequantized(quantized, tmp_path / "float"), torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(run_in_two(onnx.load(path), spec, ids, np.float32), expected, atol=2e-4, rtol=1e-3)


def test_float16_and_bfloat16_graphs(tiny, tmp_path, transformers_logits) -> None:
    """bf16 is run by onnx.reference only: ONNX Runtime lacks it on a processor."""
    ids = random_ids()
    expected = transformers_logits(tiny(), torch.from_numpy(ids)).numpy()
    import ml_dtypes

    for dtype, numpy_type, tolerance in (
        (torch.float16, np.float16, 0.03),
        (torch.bfloat16, ml_dtypes.bfloat16, 0.3),
    ):
        spec, path = graph_of(tiny(), tmp_path / str(dtype), dtype=dtype)
        onnx.checker.check_model(str(path), full_check=True)
        logits = run_in_two(onnx.load(path), spec, ids, numpy_type)
        assert np.abs(logits - expected).max() < tolerance


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
def test_bfloat16_graph_of_an_int4_model(
    tiny, tmp_path, variant: str, transformers_logits, write_dequantized, write_quantized
) -> None:
    """What TensorRT is given with --dtype bfloat16, by onnx.reference, the one runtime here that has the type."""
    import ml_dtypes

    quantized = write_quantized(tiny(variant), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    spec, path = graph_of(quantized, tmp_path / "graph", dtype=torch.bfloat16)
    onnx.checker.check_model(str(path), full_check=True)
    ids = random_ids()
    expected = transformers_logits(write_dequantized(quantized, tmp_path / "float"), torch.from_numpy(ids)).numpy()
    logits = run_in_two(onnx.load(path), spec, ids, ml_dtypes.bfloat16)
    assert np.abs(logits - expected).max() < 0.3
    assert np.abs(logits - expected).mean() < 0.03


def test_eight_bit_head_costs_little_and_keeps_the_embedding_exact(tiny, tmp_path, transformers_logits) -> None:
    for variant in ("llama", "llama-tied"):
        spec, path = graph_of(tiny(variant), tmp_path / variant, lm_head_bits=8)
        model = onnx.load(path)
        types = {i.name: i.data_type for i in model.graph.initializer}
        assert types["lm_head.codes"] == onnx.TensorProto.INT8
        assert types["model.embed_tokens.weight"] == onnx.TensorProto.BFLOAT16, "as the checkpoint has it"
        ids = random_ids()
        expected = transformers_logits(tiny(variant), torch.from_numpy(ids)).numpy()
        error = run_in_two(model, spec, ids, np.float32) - expected
        assert 0 < np.abs(error).max() < 0.05


def test_a_tied_head_is_stored_once(tiny, tmp_path) -> None:
    _, path = graph_of(tiny("llama-tied"), tmp_path)
    vocab_matrices = [i.name for i in onnx.load(path).graph.initializer if list(i.dims) == [320, 128]]
    assert vocab_matrices == ["model.embed_tokens.weight"]


def test_stages_hand_the_hidden_state_on(tiny, tmp_path, transformers_logits) -> None:
    ids = random_ids()
    spec, first = graph_of(tiny("mistral-window"), tmp_path / "first", layers=(0, 2))
    _, second = graph_of(tiny("mistral-window"), tmp_path / "second", layers=(2, 3))
    values = feed(spec, ids, 0, {}, np.float32)

    def run(path: Path, output: str, **more: np.ndarray) -> np.ndarray:
        onnx.checker.check_model(str(path), full_check=True)
        evaluator = ReferenceEvaluator(onnx.load(path))
        wanted = {i.name for i in evaluator.proto_.graph.input}
        assert evaluator.proto_.graph.output[0].name == output
        return evaluator.run([output], {n: v for n, v in {**values, **more}.items() if n in wanted})[0]

    logits = run(second, "logits", hidden_in=run(first, "hidden_out"))
    expected = transformers_logits(tiny("mistral-window"), torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=1e-3)


def test_values_that_do_not_fit_float16_are_named(tmp_path, make_tiny) -> None:
    from safetensors.torch import load_file, save_file

    model = make_tiny(tmp_path / "model", "llama")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.gate_up\.weight holds values up to"):
        graph_of(model, tmp_path / "graph", dtype=torch.float16)


def test_memory_stays_at_one_tensor(tmp_path, make_tiny) -> None:
    """Twelve blocks of 13 MB each and an embedding of 16 MB: written with far less than the whole 170 MB in memory."""
    model = make_tiny(
        tmp_path / "model", "llama", hidden_size=512, intermediate_size=3072, num_hidden_layers=12, vocab_size=16384,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    graph_of(model, tmp_path / "warm", layers=(0, 1))
    with PeakMemory() as memory:
        _, path = graph_of(model, tmp_path / "graph")
    assert path.with_name("model.onnx.data").stat().st_size > 300e6
    assert memory.above < 60e6
