"""A block that is tuned as a whole is stored only where tuning made it better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from qtk.quantization.algorithms.tune import TunedBlock
from qtk.quantization.blocks.activations import ActivationBudget
from qtk.quantization.blocks.gptq import GptqBlocks
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import BlockStreams, RowContext, Stream
from qtk.quantization.blocks.tuned import TunedBlocks
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

SCHEME = LinearScheme(4, 32, True)


def spoiled(
    block: object, weights: Mapping[str, torch.Tensor], linears: Mapping[str, QuantizedLinear], *_
) -> TunedBlock:
    worse = {name: replace(linear, scales=2 * linear.scales) for name, linear in linears.items()}
    return TunedBlock(worse, {name: weight for name, weight in weights.items() if name.endswith("norm.weight")})


def first_block(model: Path, work: Path, tune: Callable[..., TunedBlock] | None) -> tuple[QuantizedBlock, torch.Tensor]:
    """The first block by GPTQ, tuned where `tune` says how, and the hidden states after it."""
    weights = ModelWeights.open(model)
    spec, budget = weights.spec, ActivationBudget(1 << 30, work)
    tokens = torch.randint(spec.vocab_size, (8, 48), generator=torch.Generator().manual_seed(0))
    cos, sin = spec.rope.tables(spec.head_dim, 48)
    streams = []
    for _ in range(2):
        hidden = budget.store(8, 48, spec.hidden_size, torch.float32)
        hidden.write(slice(0, 8), weights.embed(tokens, torch.float32))
        streams.append(Stream(hidden))
    gptq = GptqBlocks(BlockStreams(spec, RowContext(None, cos, sin), budget, torch.device("cpu")), *streams)
    quantizer = TunedBlocks(gptq, streams[1], seed=0, tune=tune) if tune else gptq
    scheme = QuantizationScheme(SCHEME, dict.fromkeys(spec.module_shapes(), SCHEME))
    with torch.no_grad():
        result = quantizer.quantize(FloatBlock.of(spec, scheme, 0, weights.float_block(0)))
    return result, streams[0].hidden.read(slice(0, 8)).clone()


def test_a_block_that_tuning_makes_worse_stays_as_gptq_left_it(tiny, tmp_path) -> None:
    alone, hidden_alone = first_block(tiny(), tmp_path, None)
    kept, hidden_kept = first_block(tiny(), tmp_path, spoiled)
    assert torch.equal(hidden_kept, hidden_alone)
    assert not kept.floats
    for name, linear in alone.linears.items():
        assert torch.equal(kept.linears[name].codes, linear.codes)
        assert torch.equal(kept.linears[name].scales, linear.scales)
    for record in kept.records:
        assert record.block_error_before == record.block_error_after
        assert record.block_error_before > 0
