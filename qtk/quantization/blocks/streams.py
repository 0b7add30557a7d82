"""The calibration rows on their way through the model, block by block, and the statistics taken of them on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from qtk.models import forward
from qtk.models.spec import ModelSpec
from qtk.quantization.algorithms.cholesky import mirror_lower_
from qtk.quantization.algorithms.gptq import Drift
from qtk.quantization.blocks.activations import ActivationBudget, RowStore
from qtk.quantization.quantized_linear import QuantizedLinear

_BEFORE_ATTENTION = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
_SAMPLE_TOKENS = 128  # tokens on which the log's errors are measured
# H is summed in rows of blocks of this width, three at least: of two thirds (narrow) down to half (wide) of the whole's products.
_GRAM_WIDTH = 1024
_OUTLIER_NORM = 3.0  # a token weighs at most as if its norm were this many times the median


class StoredWeights(Mapping[str, torch.Tensor]):
    """A block's weights by name below its prefix, kept as they are stored and given in `dtype` at each access: of a block
    in float32, no more is in memory than what a product reads."""

    def __init__(
        self,
        stored: Mapping[str, torch.Tensor | QuantizedLinear],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        """device: to give them on (None: where they are)."""
        self.stored, self.dtype, self.device = stored, dtype, device

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self.stored[name]
        weight = weight.dequantize(self.dtype) if isinstance(weight, QuantizedLinear) else weight
        return weight.to(device=self.device, dtype=self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def held(self, *modules: str) -> dict[str, torch.Tensor]:
        """The weights and biases of these modules, held in `dtype` for several products."""
        return {name: self[name] for name in self if name.rpartition(".")[0] in modules}


@dataclass
class Stream:
    """The rows on their way through one version of the model.

    hidden: what the next block reads, [rows, seq_len, hidden_size] in the compute dtype. weights: the present block.
    """

    hidden: RowStore
    weights: StoredWeights = field(default_factory=lambda: StoredWeights({}, torch.float32))

    def enter(self, weights: Mapping[str, torch.Tensor | QuantizedLinear]) -> None:
        """Makes these weights, by name and of any dtype, those of the present block."""
        self.weights = StoredWeights(weights, self.hidden.dtype)

    def replace(self, name: str, linear: QuantizedLinear) -> None:
        """Makes the present block compute with a quantized linear."""
        self.enter({**self.weights.stored, f"{name}.weight": linear})


@dataclass(frozen=True)
class RowContext:
    """What all streams of the same rows share: keep [rows, seq_len] bool (None when no row is padded), cos and sin
    [seq_len, head_dim / 2]."""

    keep: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """Of what a set of linears reads, per real token: H = X^T X [in, in] float32; drift: C = (X_float - X)^T X, or W C (None
    without a float stream); sample: a few tokens of X and X_float (X itself without a float stream), [tokens, in] float32; tokens: how
    many there were."""

    H: torch.Tensor
    drift: Drift | None
    sample: tuple[torch.Tensor, torch.Tensor]
    tokens: int

    def copy(self) -> Statistics:
        """The same with matrices of its own."""
        drift = None if self.drift is None else Drift(self.drift.matrix.clone(), self.drift.of_outputs)
        return Statistics(self.H.clone(), drift, self.sample, self.tokens)


@dataclass(frozen=True)
class BlockInputs:
    """What the linears of a set read, chunk by chunk of rows: `read` gives one tensor [rows, seq_len, width] a stream."""

    chunks: tuple[slice, ...]
    read: Callable[[slice], list[torch.Tensor]]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        return ((chunk, self.read(chunk)) for chunk in self.chunks)


class BlockStreams:
    """Runs streams through one decoder block after another, in the parts that calibration needs.

    Everything goes chunk by chunk of rows, and each part runs once: what a part puts out is kept in a RowStore for each
    stream, in the order of `streams`.
    """

    def __init__(self, spec: ModelSpec, rows: RowContext, budget: ActivationBudget, device: torch.device) -> None:
        self.spec, self.rows, self.budget, self.device = spec, rows, budget, device

    def attention_inputs(self, streams: Sequence[Stream]) -> BlockInputs:
        """What q, k and v read."""
        return self._each(
            lambda s, x: forward.attention_input(self.spec, s.weights, x), streams, [s.hidden for s in streams]
        )

    def mlp_inputs(self, streams: Sequence[Stream]) -> BlockInputs:
        """What gate and up read, after attention was added to the hidden states."""
        return self._each(lambda s, x: forward.mlp_input(self.spec, s.weights, x), streams, [s.hidden for s in streams])

    def stored(self, streams: Sequence[Stream], stores: Sequence[RowStore]) -> BlockInputs:
        """What the stores hold."""
        return self._each(lambda s, x: x, streams, stores)

    def attention(self, layer: int, streams: Sequence[Stream]) -> list[RowStore]:
        """What o reads: the attention of block `layer`."""
        stores = self._stores(streams, self.spec.num_heads * self.spec.head_dim)
        for stream, store in zip(streams, stores, strict=True):
            weights = stream.weights.held(*(f"self_attn.{part}" for part in _BEFORE_ATTENTION))
            for chunk, (x,) in self.attention_inputs([stream]):
                mask = forward.attention_mask(x.shape[1], self.keep(chunk), self.spec.windows[layer], self.device)
                y = forward.attention_output(self.spec, weights, x, self.rows.cos, self.rows.sin, mask=mask)
                store.write(chunk, y.cpu())
        return stores

    def mlp(self, streams: Sequence[Stream]) -> list[RowStore]:
        """What down reads."""
        stores = self._stores(streams, self.spec.intermediate_size)
        for stream, store in zip(streams, stores, strict=True):
            weights = stream.weights.held("mlp.gate_proj", "mlp.up_proj")
            for chunk, (x,) in self.mlp_inputs([stream]):
                store.write(chunk, forward.mlp_hidden(weights, x).cpu())
        return stores

    def add(self, name: str, streams: Sequence[Stream], values: Sequence[RowStore]) -> None:
        """hidden += linear `name` of the values, in every stream; the values are freed."""
        for stream, store in zip(streams, values, strict=True):
            weights = stream.weights.held(name)
            for chunk in store.chunks():
                y = forward.linear(weights, name, self.read(store, chunk))
                stream.hidden.write(chunk, (self.read(stream.hidden, chunk) + y).cpu())
            self.budget.release(store)

    def run_block(self, layer: int, stream: Stream) -> None:
        """The whole block on one stream."""
        weights = dict(stream.weights)
        for chunk in stream.hidden.chunks():
            x = self.read(stream.hidden, chunk)
            stream.hidden.write(chunk, self.block_output(layer, weights, x, chunk).cpu())

    def block_output(
        self, layer: int, weights: Mapping[str, torch.Tensor], x: torch.Tensor, rows: slice | torch.Tensor
    ) -> torch.Tensor:
        """The block's output for x, the hidden states of the given rows."""
        mask = forward.attention_mask(x.shape[1], self.keep(rows), self.spec.windows[layer], self.device)
        return forward.block_forward(self.spec, weights, x, self.rows.cos, self.rows.sin, mask=mask)

    def statistics(self, inputs: BlockInputs, size: int, W: torch.Tensor | None = None) -> Statistics:
        """One pass over the inputs of one stream, or of the quantized and the float one.

        Products of bfloat16 inputs run at its speed, their sums are float32. W: [out, in], what reads the inputs. Where it
        has less than half as many rows as columns the drift is summed as W C, in fewer products and less memory.
        """
        H = torch.zeros(size, size, device=self.device)
        of_outputs = W is not None and 2 * W.shape[0] < size
        C: torch.Tensor | None = None
        tokens = 0
        samples: list[torch.Tensor] = []
        sampled = 0
        for chunk, xs in inputs:
            keep = self.keep(chunk)
            flat = [x.reshape(-1, size) if keep is None else x[keep] for x in xs]
            if not samples:
                # Once, for every chunk: small copies between the chunks kept these from being reused, and views keep them whole.
                samples = [torch.empty(2 * _SAMPLE_TOKENS + len(inputs), size, device=self.device) for _ in flat]
            x = flat[0].float()
            bound = _outlier_bound(x).to(flat[0].dtype)
            if bool((bound < 1).any()):
                flat = [x * bound for x in flat]
                x = flat[0].float()
            with _exact_products(flat[0].dtype):
                _add_gram(H, x)
                if len(flat) > 1:
                    difference = (flat[1] - flat[0]).float()
                    if of_outputs and W is not None:
                        difference = difference @ W.float().t()
                    C = torch.zeros(difference.shape[1], size, device=self.device) if C is None else C
                    C.addmm_(difference.t(), x)
            tokens += flat[0].shape[0]
            stride = max(1, flat[0].shape[0] * len(inputs) // _SAMPLE_TOKENS)
            taken = slice(sampled, sampled + math.ceil(flat[0].shape[0] / stride))
            for sample, values in zip(samples, flat, strict=True):
                sample[taken] = values[::stride]
            sampled = taken.stop
            del xs, flat, x  # before the next chunk is read
        X, *X_float = (sample[:sampled] for sample in samples)
        count = max(tokens, 1)
        mirror_lower_(H, _gram_step(size))
        drift = None if C is None else Drift(C.div_(count), of_outputs)
        return Statistics(H.div_(count), drift, (X, X_float[0] if X_float else X), tokens)

    def _stores(self, streams: Sequence[Stream], width: int) -> list[RowStore]:
        return [self.budget.store(*s.hidden.shape[:2], width, s.hidden.dtype) for s in streams]

    def _each(
        self,
        function: Callable[[Stream, torch.Tensor], torch.Tensor],
        streams: Sequence[Stream],
        stores: Sequence[RowStore],
    ) -> BlockInputs:
        """The function of what each stream's store holds."""

        def read(chunk: slice) -> list[torch.Tensor]:
            return [function(stream, self.read(store, chunk)) for stream, store in zip(streams, stores, strict=True)]

        return BlockInputs(tuple(stores[0].chunks()), read)

    def read(self, store: RowStore, chunk: slice) -> torch.Tensor:
        """Rows of a store, on the device."""
        return store.read(chunk).to(self.device)

    def keep(self, chunk: slice | torch.Tensor) -> torch.Tensor | None:
        """[rows, seq_len] bool of the given rows, True at real tokens; None when no row is padded."""
        return None if self.rows.keep is None else self.rows.keep[chunk].to(self.device)


def _outlier_bound(x: torch.Tensor) -> torch.Tensor:
    """[tokens, 1] factors that bring each token of x [tokens, in] float32 down to _OUTLIER_NORM times the median norm.

    The first tokens of a text can carry activations a hundred times as large as all others (attention sinks, Sun et al.,
    2024, arXiv:2402.17762). Unbounded, their error is all that H and C speak of, and the correction spoils every other
    token for their sake.
    """
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (_OUTLIER_NORM * norms.median() / norms.clamp_min(1e-30)).clamp_max(1.0)


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 matrices that hold values of `dtype`, at its speed where that is bfloat16: the factors lose
    nothing by a way through bfloat16 (TF32 on a GPU), and sums stay in float32. A bfloat16 product would round each sum
    to 8 bits, a noise that makes H indefinite."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _add_gram(H: torch.Tensor, x: torch.Tensor) -> None:
    """H += x^T x, the blocks on and above the diagonal: the rest is their mirror image."""
    n = H.shape[0]
    step = _gram_step(n)
    for start in range(0, n, step):
        H[start : start + step, start:].addmm_(x[:, start : start + step].t(), x[:, start:])


def _gram_step(n: int) -> int:
    """The width of the blocks in which an [n, n] H is summed."""
    return -(-n // max(3, round(n / _GRAM_WIDTH)))
