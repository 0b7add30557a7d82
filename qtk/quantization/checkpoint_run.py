"""One quantization by one method: block after block from the checkpoint into a directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from qtk.calibration.rows import TokenRows
from qtk.models.spec import LM_HEAD, LM_HEAD_MODULE
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress, note
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.activations import ActivationBudget, RowStore
from qtk.quantization.blocks.awq import AwqBlocks
from qtk.quantization.blocks.gptq import GptqBlocks
from qtk.quantization.blocks.judge import Judge
from qtk.quantization.blocks.quantized import BlockQuantizer, FloatBlock
from qtk.quantization.blocks.rtn import RtnBlocks
from qtk.quantization.blocks.streams import BlockStreams, RowContext, StoredWeights, Stream
from qtk.quantization.blocks.tuned import TunedBlocks
from qtk.quantization.checkpoint_writer import QuantizedCheckpointWriter
from qtk.quantization.formats.base import Format
from qtk.quantization.memory_need import chunk_tokens
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.probe import PROBE_NAME, Probe, probe_tokens
from qtk.quantization.report import LayerRecord
from qtk.quantization.resume import ResumeState
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.quantization.unfinished import WORK


class RunRecord(BaseModel):
    """What a run of one method did. activation_bytes, spilled_bytes: what activations took in memory at most, and in files;
    held_back_kl: nats per token from the float model on the rows held back, where there were any; seconds,
    peak_memory_bytes: over all sessions of a run that was resumed."""

    model_config = ConfigDict(frozen=True)

    method: str
    log: tuple[LayerRecord, ...]
    compute_dtype: str
    activation_bytes: int
    spilled_bytes: int
    held_back_kl: float | None
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class QuantizationTask:
    """What is to be quantized and how, the method aside.

    rows: the calibration rows (None: a method that needs none); judged_on: rows held back from them; compute_dtype: of
    activations and their products; activation_bytes: that activations may take in memory; seed: of the random choices in
    tuning.
    """

    source: ModelWeights
    scheme: QuantizationScheme
    container: Format
    effort: str
    rows: TokenRows | None
    judged_on: TokenRows | None
    device: torch.device
    compute_dtype: torch.dtype
    activation_bytes: int
    seed: int

    def probe(self, work: Path) -> Probe:
        """The rows on which what is written into `work` is compared with what was quantized."""
        tokens = probe_tokens(self.rows, self.source.spec)
        return Probe(self.source.spec, tokens, self.compute_dtype, self.device, work / WORK / PROBE_NAME)


class QuantizationRun:
    """One task by one method, under way in the directory `work`. memory: the peak of this session."""

    def __init__(self, task: QuantizationTask, method: str, work: Path, memory: PeakMemory) -> None:
        self.task, self.method, self.work, self.memory = task, method, work, memory
        self.state = ResumeState(work / WORK)
        tokens = chunk_tokens(task.source.spec)
        self.budget = ActivationBudget(task.activation_bytes, work / WORK, chunk_tokens=tokens)
        self.quantizer = block_quantizer(task, method, self.budget)
        self.probe = task.probe(work)
        self.judge = held_back_judge(task, self.budget)

    def quantize(self) -> RunRecord:
        """Writes the whole checkpoint into the work directory, going on where a run before this one stopped. The state
        stays there, so that what follows may be stopped too."""
        streams = self._streams()
        self.state.check(streams)
        with self._writer() as writer:
            self._write_outside_blocks(writer)
            self._take_up(streams, writer)
            self._quantize_blocks(streams, writer)
        divergence = self._divergence()
        for store in streams:
            self.budget.release(store)
        return RunRecord(
            method=self.method,
            log=self.state.records,
            compute_dtype=str(self.task.compute_dtype).removeprefix("torch."),
            activation_bytes=self.budget.peak_bytes,
            spilled_bytes=self.budget.spilled_bytes,
            held_back_kl=divergence,
            seconds=self.state.seconds,
            peak_memory_bytes=max(self.state.peak_memory_bytes, self.memory.peak_bytes),
        )

    def quantize_block(self, layer: int, writer: QuantizedCheckpointWriter) -> tuple[LayerRecord, ...]:
        """Quantizes and writes block `layer`; the streams then hold its outputs."""
        task = self.task
        weights = {name: weight.to(task.device) for name, weight in task.source.float_block(layer).items()}
        block = FloatBlock.of(task.source.spec, task.scheme, layer, weights)
        stored = self.quantizer.quantize(block)
        if self.judge:
            self.judge.advance(block, stored)
        as_stored = StoredWeights(stored.stored(weights), task.compute_dtype)
        self.probe.record(layer, task.source, as_stored)
        for name, linear in stored.linears.items():
            writer.linear(block.prefix + name, linear)
        for name, weight in weights.items():
            if not task.scheme.of(block.prefix + name.removesuffix(".weight")).quantized:
                writer.float(block.prefix + name, stored.floats.get(name, weight))
        return tuple(
            record.model_copy(update={"peak_memory_bytes": self.memory.peak_bytes}) for record in stored.records
        )

    def _streams(self) -> list[RowStore]:
        """The rows that are carried from block to block, and saved after each."""
        streams = self.quantizer.streams + (self.judge.streams if self.judge else [])
        return [stream.hidden for stream in streams]

    def _writer(self) -> QuantizedCheckpointWriter:
        task, resumed = self.task, self.state.blocks > 0
        return QuantizedCheckpointWriter(
            task.container, task.scheme, self.work, source=task.source, method=self.method, resume=resumed
        )

    def _write_outside_blocks(self, writer: QuantizedCheckpointWriter) -> None:
        """Embedding, last norm, lm_head: what is not in a block comes first."""
        source, scheme = self.task.source, self.task.scheme
        in_blocks = {name for layer in range(source.spec.num_layers) for name in source.spec.block_tensors(layer)}
        for name in source.kept_tensors():
            if name not in in_blocks and not scheme.of(name.removesuffix(".weight")).quantized:
                writer.float(name, source.checkpoint.tensor(name, finite=True))
        head = scheme.of(LM_HEAD_MODULE)
        if head.quantized:
            writer.linear(LM_HEAD_MODULE, rtn(source.checkpoint.tensor(LM_HEAD, finite=True), head))

    def _take_up(self, streams: list[RowStore], writer: QuantizedCheckpointWriter) -> None:
        """The streams and the finished blocks of the run that this one resumes, if there was one."""
        done, spec = self.state.blocks, self.task.source.spec
        if done:
            self.state.load(streams)
            finished = tuple(spec.block_prefix(layer) for layer in range(done))
            writer.mark_written(*(name for name in writer.tensor_names if name.startswith(finished)))
            note(f"Resumed after block {done} of {spec.num_layers}.")

    def _quantize_blocks(self, streams: list[RowStore], writer: QuantizedCheckpointWriter) -> None:
        """Every block that is not finished yet; the state is saved after each."""
        done, layers = self.state.blocks, self.task.source.spec.num_layers
        with Progress(f"quantize ({self.method})", layers - done, "blocks") as progress:
            for layer in range(done, layers):
                records = self.quantize_block(layer, writer)
                self.state.save(streams, records, writer.descriptors, self.memory.peak_bytes, self.probe.file)
                progress.advance(1, _summary(records))

    def _divergence(self) -> float | None:
        if self.judge is None:
            return None
        source = self.task.source
        return self.judge.divergence(source.final_norm(), source.lm_head(self.task.compute_dtype))


def block_quantizer(task: QuantizationTask, method: str, budget: ActivationBudget) -> BlockQuantizer:
    """What quantizes the blocks by this method, with the embedded calibration rows."""
    if task.rows is None:
        return RtnBlocks(task.source.spec)
    block = _block_streams(task, task.rows, budget)
    if method == "awq":
        return AwqBlocks(block, _embedded(task, task.rows, budget))
    quantized = _embedded(task, task.rows, budget)
    if task.effort == "fast":
        return GptqBlocks(block, quantized)
    float_stream = Stream(budget.copy(quantized.hidden))
    gptq = GptqBlocks(block, quantized, float_stream)
    return gptq if task.effort == "default" else TunedBlocks(gptq, float_stream, seed=task.seed)


def held_back_judge(task: QuantizationTask, budget: ActivationBudget) -> Judge | None:
    """What follows the quantization on the rows held back; None where there are none."""
    rows = task.judged_on
    if rows is None:
        return None
    first = _embedded(task, rows, budget)
    return Judge(_block_streams(task, rows, budget), first, Stream(budget.copy(first.hidden)))


def _block_streams(task: QuantizationTask, rows: TokenRows, budget: ActivationBudget) -> BlockStreams:
    spec = task.source.spec
    cos, sin = (table.to(task.device) for table in spec.rope.tables(spec.head_dim, rows.tokens.shape[1]))
    return BlockStreams(spec, RowContext(rows.keep() if rows.padded else None, cos, sin), budget, task.device)


def _embedded(task: QuantizationTask, rows: TokenRows, budget: ActivationBudget) -> Stream:
    count, seq_len = rows.tokens.shape
    hidden = budget.store(count, seq_len, task.source.spec.hidden_size, task.compute_dtype)
    embedding = task.source.embedding_rows(rows.tokens)
    for chunk in hidden.chunks():
        hidden.write(chunk, embedding.of(rows.tokens[chunk], task.compute_dtype))
    return Stream(hidden)


def _summary(records: Sequence[LayerRecord]) -> str:
    errors = [record.error_after for record in records if record.error_after is not None]
    return f"mean error {sum(errors) / len(errors):.2e}" if errors else ""
