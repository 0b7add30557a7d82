"""How far a model's predictions are from the float model's: KL divergence, perplexity and top-1 agreement, with errors.

Both models read the same held-out rows in float32. Checkpoints are streamed block by block in lockstep, so that only one
block of each is in memory; logits are compared in chunks of tokens. An engine gives its logits row by row.
Standard errors are clustered by row, because the tokens of one row are not independent observations.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

import qtk
from qtk.bench.divergence_result import DivergenceResult, Estimate, TextDivergence
from qtk.bench.held_out_rows import held_out_rows
from qtk.bench.options import DivergenceOptions
from qtk.calibration.rows import TokenRows
from qtk.engines.description import is_engine
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError
from qtk.machine import limit_threads, machine, unhindered_threads
from qtk.models.forward import attention_mask, block_forward, rms_norm
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import Progress, note
from qtk.quantization.model_weights import ModelWeights

LOGITS_BYTES = 64_000_000  # of one [tokens, vocab] float32 tensor; about six of them live at once
# Rows of each text for an engine's divergence from its own checkpoint, which is small and differs little between rows.
_CHECKPOINT_ROWS = 4


class Predictor(Protocol):
    """A model that predicts the rows: `blocks` steps of preparation, then the logits of each row, piece by piece."""

    blocks: int

    def begin(self, rows: TokenRows) -> None:
        """Takes the rows to predict."""
        ...

    def advance(self, layer: int) -> None:
        """Does step `layer` of the preparation; called once for each of 0 .. blocks - 1."""
        ...

    def pieces(self, row: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, logits [some positions, vocab] float32) over the row, padding left out."""
        ...


class StreamedModel:
    """A checkpoint: the hidden states of all rows, carried block by block, and the head at the end."""

    def __init__(self, weights: ModelWeights, logits_bytes: int = LOGITS_BYTES) -> None:
        """logits_bytes: of the largest piece of logits."""
        self.weights = weights
        self._piece_tokens = max(1, logits_bytes // (4 * weights.spec.vocab_size))
        self.blocks = weights.spec.num_layers
        self._norm = weights.final_norm()
        self._head = weights.lm_head(torch.float32)

    def begin(self, rows: TokenRows) -> None:
        self._lengths: list[int] = rows.lengths.tolist()
        self._hidden = self.weights.embed(rows.tokens, torch.float32)
        spec = self.weights.spec
        self._cos, self._sin = spec.rope.tables(spec.head_dim, rows.tokens.shape[1])

    def advance(self, layer: int) -> None:
        spec = self.weights.spec
        block = self.weights.block(layer, torch.float32)
        for row, length in enumerate(self._lengths):  # one row at a time without its padding, so that no mask is needed
            hidden = self._hidden[row : row + 1, :length]
            mask = attention_mask(length, None, spec.windows[layer])
            cos, sin = self._cos[:length], self._sin[:length]
            self._hidden[row, :length] = block_forward(spec, block, hidden, cos, sin, mask=mask)[0]

    def logits(self, row: int, start: int, stop: int) -> torch.Tensor:
        """[stop - start, vocab] float32."""
        last = rms_norm(self._hidden[row, start:stop], self._norm, self.weights.spec.rms_norm_eps)
        return last @ self._head.T

    def pieces(self, row: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, self._lengths[row], self._piece_tokens):
            yield start, self.logits(row, start, min(start + self._piece_tokens, self._lengths[row]))


class EngineModel:
    """A built engine: its session's logits, in the pieces in which the session computes them."""

    blocks = 0

    def __init__(self, session: DecoderSession) -> None:
        self.session = session

    def begin(self, rows: TokenRows) -> None:
        self._rows = [row[:length].tolist() for row, length in zip(rows.tokens, rows.lengths.tolist(), strict=True)]

    def advance(self, layer: int) -> None:
        raise IndexError(f"an engine has no block {layer} to prepare")

    def pieces(self, row: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, logits in self.session.logit_chunks([self._rows[row]]):
            yield start, torch.from_numpy(logits[0])


class TokenFigures:
    """Per-token figures collected row by row: kl, agreement, losses; each row's tensors have its predicted tokens."""

    def __init__(self) -> None:
        self.kl: list[torch.Tensor] = []
        self.agree: list[torch.Tensor] = []
        self.loss: list[torch.Tensor] = []
        self.reference_loss: list[torch.Tensor] = []

    def add_row(self, reference: StreamedModel, model: Predictor, row: int, ids: torch.Tensor) -> None:
        """Compares the predictions of ids[1:] given what stands before them."""
        parts = []
        for start, logits in model.pieces(row):
            stop = min(
                start + len(logits), len(ids) - 1
            )  # no token follows the last one, so its prediction is left out
            if stop > start:
                expected = reference.logits(row, start, stop)
                parts.append(compare_logits(expected, logits[: stop - start], ids[start + 1 : stop + 1]))
        for target, pieces in zip(
            (self.kl, self.agree, self.loss, self.reference_loss), zip(*parts, strict=True), strict=True
        ):
            target.append(torch.cat(pieces).double())

    def extend(self, other: TokenFigures) -> None:
        """Adds another text's rows."""
        self.kl += other.kl
        self.agree += other.agree
        self.loss += other.loss
        self.reference_loss += other.reference_loss

    def summary(self, text: str, tokens_sha256: str) -> TextDivergence:
        """The figures over all rows."""
        kl = torch.cat(self.kl)
        increase = [ours - theirs for ours, theirs in zip(self.loss, self.reference_loss, strict=True)]
        return TextDivergence(
            text=text,
            rows=len(self.kl),
            tokens=kl.numel(),
            kl=clustered(self.kl),
            kl_median=float(kl.quantile(0.5)),
            kl_p99=float(kl.quantile(0.99)),
            kl_max=float(kl.max()),
            top1_agreement=clustered(self.agree),
            perplexity_reference=math.exp(float(torch.cat(self.reference_loss).mean())),
            perplexity=math.exp(float(torch.cat(self.loss).mean())),
            loss_increase=clustered(increase),
            tokens_sha256=tokens_sha256,
        )


def compare_logits(
    reference: torch.Tensor, model: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(KL(reference || model), same top-1, loss of the model, loss of the reference), each [tokens] float32.

    reference, model: logits [tokens, vocab]; targets: [tokens] ids.
    """
    log_p, log_q = reference.float().log_softmax(-1), model.float().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    agree = (log_p.argmax(-1) == log_q.argmax(-1)).float()
    index = targets[:, None]
    return kl, agree, -log_q.gather(1, index)[:, 0], -log_p.gather(1, index)[:, 0]


def clustered(rows: list[torch.Tensor]) -> Estimate:
    """Mean over all tokens, and its standard error with rows as clusters (Liang and Zeger 1986; factor R / (R - 1))."""
    values = torch.cat(rows)
    mean = values.mean()
    count = len(rows)
    if count < 2:
        return Estimate(mean=float(mean), standard_error=math.nan)
    sums = torch.stack([(row - mean).sum() for row in rows])
    error = torch.sqrt(sums.square().sum() * count / (count - 1)) / values.numel()
    return Estimate(mean=float(mean), standard_error=float(error))


def measure_divergence(
    model: Path | DecoderSession, reference: Path, options: DivergenceOptions, checkpoint: Path | None = None
) -> DivergenceResult:
    """Compares the checkpoint or engine `model` with the checkpoint `reference` on the texts of `options`.

    checkpoint: the checkpoint that an engine was built from; the engine's divergence from it is measured too, on a few of
    the rows. An open session is used and left open; an engine's directory is opened and closed.
    InputError for models that do not share a vocabulary, rows beyond either model's context, or texts that are empty.
    """
    if isinstance(model, DecoderSession):
        description = model.description
        settings: dict[str, object] = {
            name: getattr(description, name) for name in ("backend", "dtype", "accuracy_level", "lm_head_bits")
        }
        sizes = (model.vocab_size, model.limits.max_positions)
        result = _measure(EngineModel(model), model.directory, sizes, reference, options, settings)
        if checkpoint is None:
            return result
        few = options.model_copy(update={"rows": min(options.rows, _CHECKPOINT_ROWS)})
        second = _measure(EngineModel(model), model.directory, sizes, checkpoint, few, settings)
        return result.model_copy(
            update={"from_checkpoint": second.pooled, "seconds": round(result.seconds + second.seconds, 2)}
        )
    if is_engine(model):
        with DecoderSession.open(model, options.threads) as session:
            return measure_divergence(session, reference, options, checkpoint)
    weights = ModelWeights.open(model)
    sizes = (weights.spec.vocab_size, weights.spec.max_positions)
    return _measure(StreamedModel(weights), model, sizes, reference, options, {})


def _measure(
    other: Predictor,
    model: Path,
    sizes: tuple[int, int],
    reference: Path,
    options: DivergenceOptions,
    settings: dict[str, object],
) -> DivergenceResult:
    """sizes: the vocabulary of `other`, and the longest row that it takes. settings: of an engine; empty for a checkpoint."""
    started = time.monotonic()
    choice = unhindered_threads(options.threads)
    limit_threads(choice.threads)
    if choice.sentence:
        note(choice.sentence)
    base = ModelWeights.open(reference)
    _require_comparable(base, other=(str(model), *sizes), seq_len=options.seq_len)
    tokenizer = TextTokenizer(reference)
    texts = [
        (name, held_out_rows(name, tokenizer, options.rows, options.seq_len, options.chat_format))
        for name in options.data
    ]
    expected = StreamedModel(base)
    steps = sum(expected.blocks + other.blocks + len(rows.lengths) for _, rows in texts)
    pooled, summaries = TokenFigures(), []
    with torch.inference_mode(), Progress("divergence", total=steps, unit="steps") as progress:
        for name, rows in texts:
            figures = TokenFigures()
            for predictor in (expected, other):
                predictor.begin(rows)
            for layer in range(max(expected.blocks, other.blocks)):
                for predictor in (expected, other):
                    if layer < predictor.blocks:
                        predictor.advance(layer)
                        progress.advance(1, f"{name}, block {layer}")
            for row, length in enumerate(rows.lengths.tolist()):
                figures.add_row(expected, other, row, rows.tokens[row, :length])
                progress.advance(1, f"{name}, row {row}")
            summaries.append(figures.summary(name, _digest([rows])))
            pooled.extend(figures)
    return DivergenceResult(
        qtk_version=qtk.__version__,
        model=str(model),
        reference=str(reference),
        options=options,
        texts=tuple(summaries),
        pooled=pooled.summary("all", _digest([rows for _, rows in texts])),
        engine_settings=settings,
        seconds=round(time.monotonic() - started, 2),
        machine=machine().as_dict(),
    )


def _require_comparable(base: ModelWeights, *, other: tuple[str, int, int], seq_len: int) -> None:
    reference, name, vocab_size, longest = str(base.checkpoint.path), *other
    reasons = []
    if vocab_size != base.spec.vocab_size:
        reasons.append(f"the vocabularies differ: {vocab_size} in {name}, {base.spec.vocab_size} in {reference}")
    reasons += [
        f"{path} takes at most {limit} tokens, --seq-len is {seq_len}"
        for path, limit in ((name, longest), (reference, base.spec.max_positions))
        if seq_len > limit
    ]
    if reasons:
        raise InputError(f"{name} and {reference} cannot be compared: {'; '.join(reasons)}.")


def _digest(sets: list[TokenRows]) -> str:
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(rows.tokens.numpy().tobytes())
        digest.update(rows.lengths.numpy().tobytes())
    return digest.hexdigest()
