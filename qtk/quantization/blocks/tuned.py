"""Quantizes one decoder block by GPTQ, then tunes it as a whole (`--effort best`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from qtk.quantization.algorithms.tune import Batch, TunedBlock, relative_error, tune_block
from qtk.quantization.blocks.activations import RowStore
from qtk.quantization.blocks.gptq import GptqBlocks
from qtk.quantization.blocks.quantized import QuantizedBlock
from qtk.quantization.scheme_model import LinearScheme

_STEP_TOKENS = 2048
_STEPS = 4  # at least; as many as half a pass over the rows takes, where they are more: a whole one gains two percent
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
            error_before = self._error(self.quantized.hidden, wanted)
            tuned = self._tune(layer, weights, block, inputs, wanted)
            of = QuantizedBlock(tuned.linears, tuned.norms).weights(weights, inputs.dtype)
            for chunk in inputs.chunks():  # nobody needs them any more: they give way to the outputs
                inputs.write(chunk, self.block_output(layer, of, self._read(inputs, chunk), chunk).cpu())
            error_after = self._error(inputs, wanted)
            self.budget.release(wanted)
            if error_after < error_before:
                block.linears, block.floats = tuned.linears, tuned.norms
                for chunk in inputs.chunks():
                    self.quantized.hidden.write(chunk, inputs.read(chunk))
            block.records = [
                replace(record, block_error_before=error_before, block_error_after=min(error_before, error_after))
                for record in block.records
            ]
        self.budget.release(inputs)
        return block

    def _tune(
        self, layer: int, weights: dict[str, torch.Tensor], block: QuantizedBlock, inputs: RowStore, wanted: RowStore
    ) -> TunedBlock:
        dtype = inputs.dtype
        rows_at_once = max(1, _STEP_TOKENS // inputs.shape[1])
        order = torch.Generator().manual_seed(self.seed * self.spec.num_layers + layer)

        def batches() -> Iterator[Batch]:
            for rows in torch.randperm(inputs.shape[0], generator=order, device="cpu").split(rows_at_once):
                x, y = (
                    torch.cat([self._read(store, slice(row, row + 1)) for row in rows.tolist()])
                    for store in (inputs, wanted)
                )
                yield Batch(x, y, self._token_weight(rows, x), rows)

        def output(of: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
            return self.block_output(layer, of, batch.x, batch.rows)

        steps = max(_STEPS, math.ceil(inputs.shape[0] / rows_at_once / 2))
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

    def _error(self, outputs: RowStore, wanted: RowStore) -> float:
        """The relative error of stored outputs over all rows."""
        total, tokens = 0.0, 0.0
        for chunk in wanted.chunks():
            y = self._read(wanted, chunk)
            weight = self._token_weight(chunk, y)
            count = float(weight.sum())
            total += count * float(relative_error(self._read(outputs, chunk), y, weight))
            tokens += count
        return total / tokens

    def _token_weight(self, rows: slice | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens] float32 of the given rows: 1, and 0 at padding."""
        keep = self._keep(rows)
        return torch.ones(x.shape[:2], device=self.device) if keep is None else keep.float()

    def _copy(self, store: RowStore) -> RowStore:
        copy = self.budget.store(*store.shape, store.dtype)
        for chunk in store.chunks():
            copy.write(chunk, store.read(chunk))
        return copy
