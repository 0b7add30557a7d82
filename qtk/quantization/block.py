"""Quantizes one decoder block: set of linears by set, each calibrated on what the quantized block before it puts out.

The four sets (q/k/v, o, gate/up, down) are taken in the order in which data passes them. Each part of the forward pass
runs once: what the next set reads is computed with the weights just quantized, so that every set sees the inputs it will
see in use, and linears that share an input share one Hessian.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from qtk.models import forward
from qtk.models.spec import Linear, ModelSpec
from qtk.progress import note
from qtk.quantization.activations import ActivationBudget, RowStore
from qtk.quantization.formats.base import LinearScheme
from qtk.quantization.gptq import SingularHessian, gptq, proxy_error
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.rtn import rtn


@dataclass(frozen=True)
class LayerRecord:
    """What the log says of one linear. Errors are the share of the output's energy that rounding changes, tr(EHE')/tr(WHW'):
    `error_before` of rounding to nearest, `error_after` of what is stored; None without calibration."""

    layer: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    error_before: float | None
    error_after: float | None
    damping: float | None
    seconds: float


@dataclass
class BlockInputs:
    """The calibration state that passes from block to block.

    hidden: what the next block reads, [rows, seq_len, hidden_size] in the compute dtype; keep: [rows, seq_len] bool or
    None when no row is padded; cos, sin: [seq_len, head_dim / 2].
    """

    hidden: RowStore
    keep: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor
    budget: ActivationBudget
    device: torch.device


class BlockQuantizer:
    """Quantizes block after block; `quantize` leaves `inputs.hidden` holding the quantized block's output."""

    def __init__(self, spec: ModelSpec, inputs: BlockInputs) -> None:
        self.spec, self.inputs = spec, inputs

    def quantize(
        self, layer: int, weights: dict[str, torch.Tensor], schemes: Mapping[str, LinearScheme]
    ) -> tuple[dict[str, QuantizedLinear], list[LayerRecord]]:
        """weights: the block in the compute dtype by name below its prefix; replaced by their quantized values as it goes.

        schemes: name below the prefix -> scheme (bits 16: left alone). Returns the quantized linears and their records.
        """
        results: dict[str, QuantizedLinear] = {}
        records: list[LayerRecord] = []

        def quantize_set(reads: str, inputs: Callable[[], Iterator[tuple[slice, torch.Tensor]]]) -> None:
            members = [x for x in self.spec.linears() if x.reads == reads and schemes[x.name].bits < 16]
            if not members:
                return
            start = time.monotonic()
            H = self._hessian(inputs(), members[0].in_features)
            for scheme, group in itertools.groupby(members, key=lambda x: schemes[x.name]):
                self._quantize_alike(layer, list(group), scheme, H, weights, results, records, start)
                start = time.monotonic()

        spec, store = self.spec, self.inputs
        hidden = store.hidden

        def attention_inputs() -> Iterator[tuple[slice, torch.Tensor]]:
            for rows in hidden.chunks():
                yield rows, forward.attention_input(spec, weights, self._read(hidden, rows))

        quantize_set("attention_input", attention_inputs)
        values = self._store_like(hidden, spec.num_heads * spec.head_dim)
        for rows, x in attention_inputs():
            mask = forward.attention_mask(x.shape[1], self._keep(rows), spec.windows[layer], x.device)
            self._write(values, rows, forward.attention_output(spec, weights, x, store.cos, store.sin, mask=mask))
        quantize_set("attention_output", lambda: self._each(values))
        self._add(hidden, values, weights, "self_attn.o_proj")

        def mlp_inputs() -> Iterator[tuple[slice, torch.Tensor]]:
            for rows in hidden.chunks():
                yield rows, forward.mlp_input(spec, weights, self._read(hidden, rows))

        quantize_set("mlp_input", mlp_inputs)
        values = self._store_like(hidden, spec.intermediate_size)
        for rows, x in mlp_inputs():
            self._write(values, rows, forward.mlp_hidden(weights, x))
        quantize_set("mlp_hidden", lambda: self._each(values))
        self._add(hidden, values, weights, "mlp.down_proj")
        return results, records

    def _quantize_alike(
        self,
        layer: int,
        members: list[Linear],
        scheme: LinearScheme,
        H: torch.Tensor,
        weights: dict[str, torch.Tensor],
        results: dict[str, QuantizedLinear],
        records: list[LayerRecord],
        start: float,
    ) -> None:
        """Quantizes linears that share input and scheme as one stacked matrix: rows do not depend on each other."""
        W = torch.cat([weights[f"{m.name}.weight"].float() for m in members])
        prefix = self.spec.block_prefix(layer)
        nearest = rtn(W, scheme.group_size, symmetric=scheme.symmetric, bits=scheme.bits)
        method, damping = "gptq", None
        try:
            result = gptq(W, H, scheme.group_size, symmetric=scheme.symmetric, bits=scheme.bits)
            stacked, damping = result.linear, result.damping
        except SingularHessian:
            method, stacked = "rtn", nearest
            note(
                f"WARNING: {prefix}{members[0].name}: the Hessian stays singular at every damping; rounded to nearest instead."
            )
        row = 0
        for member in members:
            part = stacked.rows(row, row + member.out_features)
            rows = slice(row, row + member.out_features)
            records.append(
                LayerRecord(
                    layer=prefix + member.name,
                    method=method,
                    bits=scheme.bits,
                    group_size=scheme.group_size,
                    symmetric=scheme.symmetric,
                    error_before=proxy_error(W[rows], nearest.rows(rows.start, rows.stop).dequantize(), H),
                    error_after=proxy_error(W[rows], part.dequantize(), H),
                    damping=damping,
                    seconds=round((time.monotonic() - start) / len(members), 4),
                )
            )
            results[member.name] = part
            weights[f"{member.name}.weight"] = part.dequantize(weights[f"{member.name}.weight"].dtype)
            row = rows.stop

    def _hessian(self, inputs: Iterator[tuple[slice, torch.Tensor]], size: int) -> torch.Tensor:
        """H = sum over real tokens of x x^T, divided by their number: [size, size] float32.

        The products run in the inputs' dtype (bf16 where that is fast) and are summed in float32.
        """
        H = torch.zeros(size, size, device=self.inputs.device)
        tokens = 0
        for rows, x in inputs:
            keep = self._keep(rows)
            flat = x.reshape(-1, size) if keep is None else x[keep]
            H += (flat.t() @ flat).float()
            tokens += flat.shape[0]
        return H / max(tokens, 1)

    def _add(self, hidden: RowStore, values: RowStore, weights: Mapping[str, torch.Tensor], name: str) -> None:
        """hidden += linear(values), and frees values."""
        for rows, x in self._each(values):
            self._write(hidden, rows, self._read(hidden, rows) + forward.linear(weights, name, x))
        self.inputs.budget.release(values)

    def _store_like(self, store: RowStore, width: int) -> RowStore:
        return self.inputs.budget.store(store.shape[0], store.shape[1], width, store.dtype)

    def _each(self, store: RowStore) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in store.chunks():
            yield rows, self._read(store, rows)

    def _read(self, store: RowStore, rows: slice) -> torch.Tensor:
        return store.read(rows).to(self.inputs.device)

    def _write(self, store: RowStore, rows: slice, values: torch.Tensor) -> None:
        store.write(rows, values.cpu())

    def _keep(self, rows: slice) -> torch.Tensor | None:
        return None if self.inputs.keep is None else self.inputs.keep[rows].to(self.inputs.device)
