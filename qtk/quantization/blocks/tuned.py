"""Quantizes one decoder block by GPTQ, then tunes it as a whole (`--effort best`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from qtk.quantization.algorithms.tune import Batch, TunedBlock, relative_error, tune_block
from qtk.quantization.blocks.activations import RowStore
from qtk.quantization.blocks.gptq import GptqBlocks
from qtk.quantization.blocks.quantized import FloatBlock, QuantizedBlock
from qtk.quantization.blocks.streams import Stream

_STEP_TOKENS = 2048
_STEPS = 4  # at least; as many as half a pass over the rows takes, where they are more: a whole one gains two percent
_FLOAT_SHARE = 0.5  # of the wanted output: the float model's; the rest is the float block's on the quantized inputs


class TunedBlocks:
    """Quantizes each block by `gptq`, which follows both streams, and then tunes it.

    seed: of the order of rows in tuning. tune: what tunes a block (`algorithms/tune.py`).
    """

    def __init__(
        self,
        gptq: GptqBlocks,
        float_stream: Stream,
        *,
        seed: int,
        tune: Callable[..., TunedBlock] = tune_block,
    ) -> None:
        self.gptq, self.block, self.float_stream = gptq, gptq.block, float_stream
        self.seed, self.tune = seed, tune

    @property
    def streams(self) -> list[Stream]:
        return self.gptq.streams

    def quantize(self, block: FloatBlock) -> QuantizedBlock:
        """Arguments and result as for GptqBlocks.quantize; norms change too."""
        inputs = self.block.budget.copy(self.gptq.quantized.hidden)
        result = self.gptq.quantize(block)
        if result.linears:
            result = self._tuned_if_better(block, result, inputs)
        self.block.budget.release(inputs)
        return result

    def _tuned_if_better(self, block: FloatBlock, rounded: QuantizedBlock, inputs: RowStore) -> QuantizedBlock:
        """The tuned block where its error is smaller, else the rounded one; the quantized stream holds its outputs.
        inputs: of the block. They are overwritten with the outputs of the tuned block."""
        outputs = self.gptq.quantized.hidden
        wanted = self._wanted(block, inputs)
        error_before = self._error(outputs, wanted)
        tuned = self._tune(block, rounded, inputs, wanted)
        weights = QuantizedBlock(tuned.linears, tuned.norms).weights(block.weights, inputs.dtype)
        for chunk in inputs.chunks():  # inputs are no longer needed; overwrite them with the outputs
            y = self.block.block_output(block.layer, weights, self.block.read(inputs, chunk), chunk)
            inputs.write(chunk, y.cpu())
        error_after = self._error(inputs, wanted)
        self.block.budget.release(wanted)
        better = error_after < error_before
        if better:
            for chunk in inputs.chunks():
                outputs.write(chunk, inputs.read(chunk))
        errors = (error_before, min(error_before, error_after))
        return QuantizedBlock(
            tuned.linears if better else rounded.linears,
            tuned.norms if better else rounded.floats,
            tuple(record.with_block_errors(*errors) for record in rounded.records),
        )

    def _tune(self, block: FloatBlock, rounded: QuantizedBlock, inputs: RowStore, wanted: RowStore) -> TunedBlock:
        rows_at_once = max(1, _STEP_TOKENS // inputs.shape[1])
        order = torch.Generator().manual_seed(self.seed * self.block.spec.num_layers + block.layer)

        def batches() -> Iterator[Batch]:
            for rows in torch.randperm(inputs.shape[0], generator=order, device="cpu").split(rows_at_once):
                x, y = (
                    torch.cat([self.block.read(store, slice(row, row + 1)) for row in rows.tolist()])
                    for store in (inputs, wanted)
                )
                yield Batch(x, y, self._token_weight(rows, x), rows)

        def output(of: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
            return self.block.block_output(block.layer, of, batch.x, batch.rows)

        steps = max(_STEPS, math.ceil(inputs.shape[0] / rows_at_once / 2))
        return self.tune(output, block.weights, rounded.linears, batches, steps, inputs.dtype)

    def _wanted(self, block: FloatBlock, inputs: RowStore) -> RowStore:
        """What the tuned block should put out: halfway between the float model's hidden states, which take back all of
        the error in the inputs and fit the calibration text too closely, and the float block's on the inputs it has."""
        wanted = self.block.budget.copy(self.float_stream.hidden)
        floats = {name: weight.to(inputs.dtype) for name, weight in block.weights.items()}
        for chunk in wanted.chunks():
            here = self.block.block_output(block.layer, floats, self.block.read(inputs, chunk), chunk).float()
            there = self.block.read(wanted, chunk).float()
            wanted.write(chunk, torch.lerp(here, there, _FLOAT_SHARE).to(wanted.dtype).cpu())
        return wanted

    def _error(self, outputs: RowStore, wanted: RowStore) -> float:
        """The relative error of stored outputs over all rows."""
        total, tokens = 0.0, 0.0
        for chunk in wanted.chunks():
            y = self.block.read(wanted, chunk)
            weight = self._token_weight(chunk, y)
            count = float(weight.sum())
            total += count * float(relative_error(self.block.read(outputs, chunk), y, weight))
            tokens += count
        return total / tokens

    def _token_weight(self, rows: slice | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens] float32 of the given rows: 1, and 0 at padding."""
        keep = self.block.keep(rows)
        return torch.ones(x.shape[:2], device=self.block.device) if keep is None else keep.float()
