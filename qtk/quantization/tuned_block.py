"""Quantizes one decoder block by GPTQ, then tunes it as a whole (`--effort best`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from qtk.quantization.activations import RowStore
from qtk.quantization.formats.base import LinearScheme
from qtk.quantization.gptq_block import GptqBlocks
from qtk.quantization.quantized_block import QuantizedBlock
from qtk.quantization.tune import Batch, TunedBlock, tune_block

_STEPS = 24
_PASSES = 1.5  # over the rows at least, where there are many
_FLOAT_SHARE = 0.5  # of the wanted output: the float model's; the rest is the float block's on the quantized inputs


class TunedBlocks(GptqBlocks):
    """GptqBlocks with a float stream, and the tuning of each block after GPTQ. seed: of the order of rows in tuning."""

    seed: int = 0

    def quantize(
        self, layer: int, weights: dict[str, torch.Tensor], schemes: Mapping[str, LinearScheme]
    ) -> QuantizedBlock:
        """Arguments and result as for GptqBlocks.quantize; norms change too."""
        inputs = self._copy(self.quantized.hidden)
        block = super().quantize(layer, weights, schemes)
        if block.linears:
            wanted = self._wanted(layer, weights, inputs)
            tuned = self._tune(layer, weights, block, inputs, wanted)
            self.budget.release(wanted)
            block.linears = tuned.linears
            block.floats = tuned.norms
            block.records = [
                replace(record, block_error_before=tuned.error_before, block_error_after=tuned.error_after)
                for record in block.records
            ]
            self.quantized.weights = block.weights(weights, inputs.dtype)
            self.run_block(layer, self.quantized, inputs)
        self.budget.release(inputs)
        return block

    def _tune(
        self, layer: int, weights: dict[str, torch.Tensor], block: QuantizedBlock, inputs: RowStore, wanted: RowStore
    ) -> TunedBlock:
        dtype = inputs.dtype
        rows_at_once = next(inputs.chunks()).stop
        order = torch.Generator().manual_seed(self.seed * self.spec.num_layers + layer)

        def batches() -> Iterator[Batch]:
            for rows in torch.randperm(inputs.shape[0], generator=order, device="cpu").split(rows_at_once):
                x, y = (
                    torch.cat([self._read(store, slice(row, row + 1)) for row in rows.tolist()])
                    for store in (inputs, wanted)
                )
                keep = torch.ones(x.shape[:2], device="cpu") if self.rows.keep is None else self.rows.keep[rows].float()
                yield Batch(x, y, keep.to(self.device), rows)

        def output(of: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
            return self.block_output(layer, of, batch.x, batch.rows)

        steps = max(_STEPS, round(_PASSES * inputs.shape[0] / rows_at_once))
        return tune_block(output, weights, block.linears, batches, steps, dtype)

    def _wanted(self, layer: int, weights: dict[str, torch.Tensor], inputs: RowStore) -> RowStore:
        """What the tuned block should put out: halfway between the float model's hidden states, which take back all of
        the error in the inputs and fit the calibration text too closely, and the float block's on the inputs it has."""
        assert self.float_stream is not None
        wanted = self._copy(self.float_stream.hidden)
        floats = {name: weight.to(inputs.dtype) for name, weight in weights.items()}
        for chunk in wanted.chunks():
            here = self.block_output(layer, floats, self._read(inputs, chunk), chunk).float()
            there = self._read(wanted, chunk).float()
            wanted.write(chunk, torch.lerp(here, there, _FLOAT_SHARE).to(wanted.dtype).cpu())
        return wanted

    def _copy(self, store: RowStore) -> RowStore:
        copy = self.budget.store(*store.shape, store.dtype)
        for chunk in store.chunks():
            copy.write(chunk, store.read(chunk))
        return copy
