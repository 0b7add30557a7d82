"""The rewrite for calls of one row: other operators, the same numbers, and the file left as it is.

That one row gives what transformers gives, every architecture and the window included, is in test_session.py.
"""

from __future__ import annotations

import collections

import numpy as np
import onnx
import pytest
from support.executors import TO_THE_END, open_on_processor

from qtk.engines.build import build_engine
from qtk.engines.onnxruntime.rewrite import rewritten
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.quantization.scheme_model import LinearScheme

VERIFY = BuildOptions(accuracy_level=0, max_input_len=384, max_output_len=128)


def kinds(model: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.node)


def test_blocks_shrink_to_the_runtime_s_own_operators(tiny, tmp_path) -> None:
    description = build_engine(tiny("qwen2"), tmp_path / "engine", VERIFY)
    before = kinds(onnx.load(tmp_path / "engine" / "model.onnx"))
    graph = rewritten(tmp_path / "engine" / "model.onnx", description)
    assert graph is not None
    after = kinds(onnx.load_from_string(graph))
    assert after["GroupQueryAttention"] == before["Attention"] == 3
    # Two norms a block follow an addition, but for the first of all and the one behind the choice of positions.
    assert after["SkipSimplifiedLayerNormalization"] == before["RMSNormalization"] - 2 == 5
    gone = {"Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Reshape"}
    assert not gone & (after.keys() - {"Transpose"})
    assert after["Transpose"] == before["Transpose"] - 6, "what the float head turns stays"
    assert kinds(onnx.load(tmp_path / "engine" / "model.onnx")) == before


def test_norms_between_the_product_and_the_rotation_leave_the_graph_as_it_is(tiny, tmp_path) -> None:
    description = build_engine(tiny("qwen3"), tmp_path / "engine", VERIFY)
    assert rewritten(tmp_path / "engine" / "model.onnx", description) is None
    assert DecoderSession.open(tmp_path / "engine", 1).logits([[5, 6]]).shape == (1, 2, 320)


@pytest.mark.parametrize(
    ("variant", "dtype"), [("llama", "float32"), ("mistral-window", "float32"), ("llama", "float16")]
)
def test_one_row_has_the_numbers_of_the_portable_graph(
    tiny, tmp_path, variant: str, dtype: str, write_quantized
) -> None:
    """Chunks of 16 and a cache that grows, so that a prompt meets its own earlier chunks."""
    model = write_quantized(tiny(variant), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    build_engine(model, tmp_path / "engine", VERIFY.model_copy(update={"dtype": dtype}))
    rewritten_graph = open_on_processor(tmp_path / "engine", 1, chunk=16)
    portable = open_on_processor(tmp_path / "engine", 1, chunk=16, rewrite=False)
    row = np.random.default_rng(0).integers(2, 320, 61).tolist()
    tolerance = 2e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(rewritten_graph.logits([row]), portable.logits([row]), atol=tolerance, rtol=1e-3)
    tokens = [session.generate([row], 40, TO_THE_END).tokens for session in (rewritten_graph, portable)]
    assert dtype == "float16" or tokens[0] == tokens[1]


def test_a_session_that_meets_a_batch_goes_on_with_the_portable_graph(tiny, tmp_path) -> None:
    build_engine(tiny(), tmp_path / "engine", VERIFY)
    session = DecoderSession.open(tmp_path / "engine", 1)
    rows = [np.random.default_rng(seed).integers(2, 320, 20 + seed).tolist() for seed in (1, 2)]
    before = session.generate([rows[0]], 12, TO_THE_END).tokens[0]
    both = session.generate(rows, 12, TO_THE_END).tokens
    assert [before, both[1]] == [both[0], session.generate([rows[1]], 12, TO_THE_END).tokens[0]]


@pytest.mark.parametrize("rows", [1, 2])
def test_the_cache_is_written_in_place(tiny, tmp_path, rows: int) -> None:
    """The arrays that were bound hold the keys and values of the tokens that went in, and zeros behind them."""
    build_engine(tiny(), tmp_path / "engine", VERIFY)
    session = DecoderSession.open(tmp_path / "engine", 1)
    session.logits([[5, 6, 7, 8, 9]] * rows)
    cache = session.executor.cache()  # type: ignore[attr-defined]
    assert len(cache) == 6
    for array in cache.values():
        assert array.shape == (rows, 2, 32, 32)
        assert np.abs(array[:, :, :5]).max(axis=(1, 3)).all()
        assert not array[:, :, 5:].any()
