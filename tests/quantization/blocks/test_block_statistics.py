"""What calibration takes of the activations, against float64."""

from __future__ import annotations

import pytest
import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.machine import keep_freed_memory
from qtk.models.registry import model_spec
from qtk.peak_memory import PeakMemory
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.streams import BlockStreams, RowContext, Stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_keep_float32_whatever_their_inputs_are(tiny, tmp_path, dtype: torch.dtype) -> None:
    """Of bfloat16 products, H would have errors of one in 256, and no Cholesky decomposition."""
    spec = model_spec(Checkpoint(tiny("llama")))
    budget = ActivationBudget(1 << 30, tmp_path)
    draw = torch.Generator().manual_seed(0)
    size = 96
    keep = torch.arange(300)[None, :] < torch.tensor([300, 120, 300])[:, None]
    streams = [Stream(budget.store(3, 300, size, dtype)) for _ in range(2)]
    X = torch.randn(3, 300, size, generator=draw).mul_(torch.logspace(-1, 1, size)).to(dtype)
    X_float = (X.float() + 0.1 * torch.randn(X.shape, generator=draw)).to(dtype)
    for stream, values in zip(streams, (X, X_float), strict=True):
        stream.hidden.write(slice(0, 3), values)
    blocks = BlockStreams(spec, RowContext(keep, torch.empty(0), torch.empty(0)), budget, torch.device("cpu"))
    before = torch.get_float32_matmul_precision()
    found = blocks.statistics(blocks.stored(streams, [stream.hidden for stream in streams]), size)
    assert torch.get_float32_matmul_precision() == before
    x, difference = X[keep].double(), (X_float - X)[keep].double()
    for name, matrix, expected in (("H", found.H, x.t() @ x), ("C", found.drift.matrix, difference.t() @ x)):
        expected /= keep.sum()
        assert matrix is not None
        assert ((matrix.double() - expected).abs().max() / expected.abs().max()) < 1e-5, name
    assert found.sample[0].shape == found.sample[1].shape
    alone = blocks.statistics(blocks.stored(streams[:1], [streams[0].hidden]), size)
    assert torch.equal(alone.H, found.H)
    assert alone.drift is None
    assert alone.sample[0] is alone.sample[1]


def test_statistics_hold_a_few_chunks_whatever_the_number_of_rows(tiny, tmp_path) -> None:
    """Of rows on disk, 268 MB here: samples as views, or as copies between the chunks, kept nearly all of it in memory."""
    size, rows = 1024, 256
    budget = ActivationBudget(0, tmp_path, chunk_tokens=2048)
    streams = [Stream(budget.store(rows, 256, size, torch.float32))]
    for row in range(rows):
        streams[0].hidden.write(slice(row, row + 1), torch.randn(1, 256, size))
    blocks = BlockStreams(
        model_spec(Checkpoint(tiny("llama"))), RowContext(None, *[torch.empty(0)] * 2), budget, torch.device("cpu")
    )
    keep_freed_memory()  # as `qtk quantize` does
    with PeakMemory() as memory:
        blocks.statistics(blocks.stored(streams, [stream.hidden for stream in streams]), size)
    assert memory.above < 100e6  # of the whole process, whose libraries have buffers of their own
