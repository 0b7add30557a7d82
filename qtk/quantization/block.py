"""Quantizes one decoder block: set of linears by set, each calibrated on what the quantized block before it puts out.

The four sets (q/k/v, o, gate/up, down) are taken in the order in which data passes them. Each part of the forward pass
runs once: what the next set reads is computed with the weights just quantized, so that every set sees the inputs it will
see in use, and linears that share an input share one Hessian.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from qtk.models import forward
from qtk.models.spec import Linear, ModelSpec
from qtk.progress import note
from qtk.quantization.activations import ActivationBudget, RowStore
from qtk.quantization.formats.base import LinearScheme
from qtk.quantization.gptq import SingularHessian, gptq
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.rtn import rtn

_SAMPLE_TOKENS = 512  # tokens on which the log's errors are measured
_OUTLIER_NORM = 3.0  # a token weighs at most as if its norm were this many times the median
Inputs = Iterator[tuple[slice, list[torch.Tensor]]]


@dataclass(frozen=True)
class LayerRecord:
    """What the log says of one linear. Errors are shares of the output's energy on sample tokens of the calibration text,
    |W X_float - Q X|^2 / |W X_float|^2: `error_before` with W rounded to nearest, `error_after` with what is stored. Both
    include what earlier linears did to the inputs X where the float inputs are followed beside them. None without
    calibration."""

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
class Stream:
    """The calibration rows on their way through one version of the model.

    hidden: what the next block reads, [rows, seq_len, hidden_size] in the compute dtype. weights: the present block by
    name below its prefix, in the compute dtype.
    """

    hidden: RowStore
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """What both streams share: keep [rows, seq_len] bool (None when no row is padded), cos and sin [seq_len, head_dim / 2]."""

    keep: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """Of what a set of linears reads, per real token: H = X^T X, C = (X_float - X)^T X (None without a float stream), both
    [in, in] float32; sample: a few tokens of X and X_float, [tokens, in] float32."""

    H: torch.Tensor
    C: torch.Tensor | None
    sample: tuple[torch.Tensor, torch.Tensor]


class BlockQuantizer:
    """Quantizes block after block. `quantized` runs through the blocks as they are stored; `float_stream`, when there is
    one, through the float blocks beside it, so that each set of linears is told how far its inputs are off."""

    def __init__(
        self,
        spec: ModelSpec,
        rows: Rows,
        budget: ActivationBudget,
        device: torch.device,
        quantized: Stream,
        float_stream: Stream | None = None,
    ) -> None:
        self.spec, self.rows, self.budget, self.device = spec, rows, budget, device
        self.quantized, self.float_stream = quantized, float_stream
        self.streams = [quantized] if float_stream is None else [quantized, float_stream]

    def quantize(
        self, layer: int, weights: dict[str, torch.Tensor], schemes: Mapping[str, LinearScheme]
    ) -> tuple[dict[str, QuantizedLinear], list[LayerRecord]]:
        """weights: block `layer` as stored, by name below its prefix. schemes: linear names -> scheme (bits 16: left
        alone). Returns the quantized linears and their records; the streams then hold the block's outputs."""
        dtype = self.quantized.hidden.dtype
        for stream in self.streams:
            stream.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        results: dict[str, QuantizedLinear] = {}
        records: list[LayerRecord] = []

        def quantize_set(reads: str, inputs: Callable[[], Inputs]) -> None:
            members = [x for x in self.spec.linears() if x.reads == reads and schemes[x.name].bits < 16]
            if not members:
                return
            start = time.monotonic()
            statistics = self._statistics(inputs(), members[0].in_features)
            for scheme, group in itertools.groupby(members, key=lambda x: schemes[x.name]):
                linears, facts = self._quantize_alike(layer, list(group), scheme, weights, statistics, start)
                results.update(linears)
                records.extend(facts)
                start = time.monotonic()
            for member in members:
                name = f"{member.name}.weight"
                self.quantized.weights[name] = results[member.name].dequantize(dtype)

        spec, window = self.spec, self.spec.windows[layer]

        def attention_inputs() -> Inputs:
            return self._each(
                lambda s, x: forward.attention_input(spec, s.weights, x), [s.hidden for s in self.streams]
            )

        def mlp_inputs() -> Inputs:
            return self._each(lambda s, x: forward.mlp_input(spec, s.weights, x), [s.hidden for s in self.streams])

        quantize_set("attention_input", attention_inputs)
        values = self._stores(spec.num_heads * spec.head_dim)
        for chunk, xs in attention_inputs():
            mask = forward.attention_mask(xs[0].shape[1], self._keep(chunk), window, self.device)
            for stream, store, x in zip(self.streams, values, xs, strict=True):
                y = forward.attention_output(spec, stream.weights, x, self.rows.cos, self.rows.sin, mask=mask)
                store.write(chunk, y.cpu())
        quantize_set("attention_output", lambda: self._each(lambda s, x: x, values))
        self._add("self_attn.o_proj", values)
        quantize_set("mlp_input", mlp_inputs)
        values = self._stores(spec.intermediate_size)
        for chunk, xs in mlp_inputs():
            for stream, store, x in zip(self.streams, values, xs, strict=True):
                store.write(chunk, forward.mlp_hidden(stream.weights, x).cpu())
        quantize_set("mlp_hidden", lambda: self._each(lambda s, x: x, values))
        self._add("mlp.down_proj", values)
        return results, records

    def _quantize_alike(
        self,
        layer: int,
        members: list[Linear],
        scheme: LinearScheme,
        weights: Mapping[str, torch.Tensor],
        statistics: Statistics,
        start: float,
    ) -> tuple[dict[str, QuantizedLinear], list[LayerRecord]]:
        """Quantizes linears that share input and scheme as one stacked matrix: rows do not depend on each other."""
        W = torch.cat([weights[f"{m.name}.weight"].float() for m in members])
        prefix = self.spec.block_prefix(layer)
        group_size, symmetric, bits = scheme.group_size, scheme.symmetric, scheme.bits
        nearest = rtn(W, group_size, symmetric=symmetric, bits=bits)
        method, damping = "gptq", None
        try:
            result = gptq(W, statistics.H, group_size, symmetric=symmetric, bits=bits, C=statistics.C)
            stacked, damping = result.linear, result.damping
        except SingularHessian:
            method, stacked = "rtn", nearest
            note(
                f"WARNING: {prefix}{members[0].name}: the Hessian stays singular at every damping; rounded to nearest instead."
            )
        before = _output_error(W, nearest, statistics)
        after = _output_error(W, stacked, statistics)
        seconds = round((time.monotonic() - start) / len(members), 4)
        linears, records, row = {}, [], 0
        for member in members:
            end = row + member.out_features
            linears[member.name] = stacked.rows(row, end)
            records.append(
                LayerRecord(
                    layer=prefix + member.name,
                    method=method,
                    bits=bits,
                    group_size=group_size,
                    symmetric=symmetric,
                    error_before=float(before[0, row:end].sum() / before[1, row:end].sum()),
                    error_after=float(after[0, row:end].sum() / after[1, row:end].sum()),
                    damping=damping,
                    seconds=seconds,
                )
            )
            row = end
        return linears, records

    def _statistics(self, inputs: Inputs, size: int) -> Statistics:
        """One pass over the rows. Products run in the inputs' dtype (bf16 where that is fast) and are summed in float32."""
        H = torch.zeros(size, size, device=self.device)
        C = None if self.float_stream is None else torch.zeros(size, size, device=self.device)
        tokens = 0
        samples: list[list[torch.Tensor]] = []
        chunks = sum(1 for _ in self.quantized.hidden.chunks())
        for chunk, xs in inputs:
            keep = self._keep(chunk)
            flat = [x.reshape(-1, size) if keep is None else x[keep] for x in xs]
            bound = _outlier_bound(flat[0])
            flat = [x * bound for x in flat]
            H += (flat[0].t() @ flat[0]).float()
            if C is not None:
                C += ((flat[1] - flat[0]).t() @ flat[0]).float()
            tokens += flat[0].shape[0]
            stride = max(1, flat[0].shape[0] * chunks // _SAMPLE_TOKENS)
            samples.append([x[::stride].float() for x in flat])
        X, X_float = (torch.cat([s[i] for s in samples]) for i in (0, -1))
        return Statistics(H / max(tokens, 1), None if C is None else C / max(tokens, 1), (X, X_float))

    def _add(self, name: str, values: list[RowStore]) -> None:
        """hidden += linear(values) in every stream, and frees values."""
        for stream, store in zip(self.streams, values, strict=True):
            for chunk in store.chunks():
                y = forward.linear(stream.weights, name, self._read(store, chunk))
                stream.hidden.write(chunk, (self._read(stream.hidden, chunk) + y).cpu())
            self.budget.release(store)

    def _stores(self, width: int) -> list[RowStore]:
        return [self.budget.store(*s.hidden.shape[:2], width, s.hidden.dtype) for s in self.streams]

    def _each(self, function: Callable[[Stream, torch.Tensor], torch.Tensor], stores: list[RowStore]) -> Inputs:
        """Chunk by chunk, the function of what each stream's store holds."""
        for chunk in stores[0].chunks():
            pairs = zip(self.streams, stores, strict=True)
            yield chunk, [function(stream, self._read(store, chunk)) for stream, store in pairs]

    def _read(self, store: RowStore, chunk: slice) -> torch.Tensor:
        return store.read(chunk).to(self.device)

    def _keep(self, chunk: slice) -> torch.Tensor | None:
        return None if self.rows.keep is None else self.rows.keep[chunk].to(self.device)


def _outlier_bound(x: torch.Tensor) -> torch.Tensor:
    """[tokens, 1] factors that bring each token of x [tokens, in] down to _OUTLIER_NORM times the median norm.

    The first tokens of a text can carry activations a hundred times as large as all others (attention sinks, Sun et al.,
    2024, arXiv:2402.17762). Unbounded, their error is all that H and C speak of, and the correction spoils every other
    token for their sake.
    """
    norms = x.float().norm(dim=-1, keepdim=True)
    return (_OUTLIER_NORM * norms.median() / norms.clamp_min(1e-30)).clamp_max(1.0).to(x.dtype)


def _output_error(W: torch.Tensor, linear: QuantizedLinear, statistics: Statistics) -> torch.Tensor:
    """[2, out]: squared error of each output on the sample tokens, and the output's own energy."""
    X, X_float = statistics.sample
    wanted = X_float @ W.t()
    return torch.stack(
        ((wanted - X @ linear.dequantize().t()).square().sum(0), wanted.square().sum(0).clamp_min(1e-30))
    )
