"""One quantization by one method: block after block from the checkpoint into a directory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from qtk.calibration.rows import TokenRows
from qtk.checkpoint.reader import Checkpoint, config_bytes
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec, copy_companions
from qtk.errors import InputError
from qtk.machine import total_memory
from qtk.models.spec import LM_HEAD, LM_HEAD_MODULE, ModelSpec
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress, note
from qtk.quantization.algorithms.rtn import rtn
from qtk.quantization.blocks.activations import ActivationBudget, RowStore
from qtk.quantization.blocks.awq import AwqBlocks
from qtk.quantization.blocks.gptq import GptqBlocks
from qtk.quantization.blocks.judge import Judge
from qtk.quantization.blocks.layer_log import LayerRecord, log_line
from qtk.quantization.blocks.quantized import QuantizedBlock
from qtk.quantization.blocks.streams import Rows, Stream
from qtk.quantization.blocks.tuned import TunedBlocks
from qtk.quantization.formats.base import Format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.resume import WORK, ResumeState
from qtk.quantization.scheme_model import QuantizationScheme

_SHARE_OF_MEMORY = 4  # activations take a quarter of it, unless --memory says otherwise


class Outcome(BaseModel):
    """What a run did. held_back_kl: nats per token from the float model on the rows held back, where there were any;
    seconds, peak_memory_bytes: over all sessions of a run that was resumed."""

    model_config = ConfigDict(frozen=True)

    method: str
    log: list[dict[str, Any]]
    compute_dtype: str
    spilled_bytes: int
    held_back_kl: float | None
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class QuantizationTask:
    """What is to be quantized and how. rows: what it is calibrated on (None for rtn); judged_on: rows held back from that;
    compute_dtype: of activations and their products; seed: of what tuning chooses at random."""

    checkpoint: Checkpoint
    spec: ModelSpec
    scheme: QuantizationScheme
    container: Format
    options: QuantizeOptions
    rows: TokenRows | None
    judged_on: TokenRows | None
    device: torch.device
    compute_dtype: torch.dtype
    seed: int = 0


class QuantizationRun:
    """One task under way in the directory `work`."""

    def __init__(self, task: QuantizationTask, work: Path) -> None:
        self.task, self.work = task, work
        self.checkpoint, self.spec, self.scheme, self.container = (
            task.checkpoint,
            task.spec,
            task.scheme,
            task.container,
        )
        self.weights = ModelWeights.of_floats(task.checkpoint, task.spec)
        self.state = ResumeState(work / WORK)

    def quantize(self, memory: PeakMemory) -> Outcome:
        """Writes the whole checkpoint into the work directory, going on where a run before this one stopped. The state
        stays there, so that what follows may be stopped too."""
        start = time.monotonic()
        asked = self.task.options.memory
        limit = asked * 1e9 if asked else total_memory() / _SHARE_OF_MEMORY
        budget = ActivationBudget(int(limit), self.work / WORK)
        quantizer, judge = self._block_quantizer(budget), self._judge(budget)
        streams = [stream.hidden for each in (quantizer, judge) if each for stream in each.streams]
        self.state.check(streams)
        with CheckpointWriter(self.work, self._output_specs(), resume=self.state.blocks > 0) as writer:
            self._copy_float_tensors(writer)
            self._take_up(streams, writer)
            self._quantize_blocks(quantizer, judge, streams, writer, memory, start)
        divergence = judge and judge.divergence(
            self.weights.final_norm(), self.weights.lm_head(self.task.compute_dtype)
        )
        for store in streams:
            budget.release(store)
        self._write_config()
        return Outcome(
            method=self.scheme.method,
            log=self.state.log,
            compute_dtype=str(self.task.compute_dtype).removeprefix("torch."),
            spilled_bytes=budget.spilled_bytes,
            held_back_kl=divergence,
            seconds=self.state.seconds,
            peak_memory_bytes=max(self.state.peak_memory_bytes, memory.peak_bytes),
        )

    def _take_up(self, streams: list[RowStore], writer: CheckpointWriter) -> None:
        """The streams and the finished blocks of the run that this one resumes, if there was one."""
        done = self.state.blocks
        if done:
            self.state.load(streams)
            finished = tuple(self.spec.block_prefix(layer) for layer in range(done))
            writer.mark_written(*(name for name in writer.specs if name.startswith(finished)))
            note(f"Resumed after block {done} of {self.spec.num_layers}.")

    def _quantize_blocks(
        self,
        quantizer: GptqBlocks | AwqBlocks | None,
        judge: Judge | None,
        streams: list[RowStore],
        writer: CheckpointWriter,
        memory: PeakMemory,
        start: float,
    ) -> None:
        """Every block that is not finished yet, the state saved after each. start: of this session, monotonic seconds."""
        done, before = self.state.blocks, self.state.seconds
        with Progress(f"quantize ({self.scheme.method})", self.spec.num_layers - done, "block") as progress:
            for layer in range(done, self.spec.num_layers):
                records = self._quantize_block(layer, quantizer, judge, writer)
                self.state.log += [log_line(record, memory.peak_bytes) for record in records]
                self.state.save(
                    layer + 1,
                    streams,
                    self.state.log,
                    writer.descriptors,
                    seconds=before + time.monotonic() - start,
                    peak_memory_bytes=max(self.state.peak_memory_bytes, memory.peak_bytes),
                )
                progress.advance(1, _summary(records))

    def _output_specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the output, in the order of the input's files."""
        specs: dict[str, TensorSpec] = {}
        for name in kept_tensors(self.checkpoint, self.spec):
            module = name.removesuffix(".weight")
            scheme = self.scheme.of(module)
            info = self.checkpoint.info(name)
            if not scheme.quantized:
                specs[name] = TensorSpec(info.dtype, info.shape)
            else:
                specs |= self.container.specs(module, (info.shape[0], info.shape[1]), scheme)
        return specs

    def _copy_float_tensors(self, writer: CheckpointWriter) -> None:
        """Embedding, last norm, lm_head: what is not in a block comes first."""
        in_blocks = {name for layer in range(self.spec.num_layers) for name in self.spec.block_tensors(layer)}
        for name in kept_tensors(self.checkpoint, self.spec):
            if name not in in_blocks and not self.scheme.of(name.removesuffix(".weight")).quantized:
                writer.write(name, self.checkpoint.tensor(name, finite=True))
        scheme = self.scheme.of(LM_HEAD_MODULE)
        if scheme.quantized:
            head = rtn(self.checkpoint.tensor(LM_HEAD, finite=True), scheme)
            self._write_linear(LM_HEAD_MODULE, head, writer)

    def _block_quantizer(self, budget: ActivationBudget) -> GptqBlocks | AwqBlocks | None:
        """The quantizer with the embedded calibration rows; None for a method that needs no calibration."""
        task = self.task
        if task.rows is None:
            return None
        rows, stream = self._rows(task.rows), self._embedded(task.rows, budget)
        if task.scheme.method == "awq":
            return AwqBlocks(self.spec, rows, budget, task.device, stream)
        if task.options.effort == "fast":
            return GptqBlocks(self.spec, rows, budget, task.device, stream)
        streams = (stream, self._embedded(task.rows, budget))
        if task.options.effort == "default":
            return GptqBlocks(self.spec, rows, budget, task.device, *streams)
        tuned = TunedBlocks(self.spec, rows, budget, task.device, *streams)
        tuned.seed = task.seed
        return tuned

    def _judge(self, budget: ActivationBudget) -> Judge | None:
        held_back = self.task.judged_on
        if held_back is None:
            return None
        streams = (self._embedded(held_back, budget), self._embedded(held_back, budget))
        return Judge(self.spec, self._rows(held_back), budget, self.task.device, *streams)

    def _rows(self, rows: TokenRows) -> Rows:
        cos, sin = (t.to(self.task.device) for t in self.spec.rope.tables(self.spec.head_dim, rows.tokens.shape[1]))
        return Rows(rows.keep() if rows.padded else None, cos, sin)

    def _embedded(self, rows: TokenRows, budget: ActivationBudget) -> Stream:
        count, seq_len = rows.tokens.shape
        hidden = budget.store(count, seq_len, self.spec.hidden_size, self.task.compute_dtype)
        for chunk in hidden.chunks():
            hidden.write(chunk, self.weights.embed(rows.tokens[chunk], self.task.compute_dtype))
        return Stream(hidden)

    def _quantize_block(
        self, layer: int, quantizer: GptqBlocks | AwqBlocks | None, judge: Judge | None, writer: CheckpointWriter
    ) -> list[LayerRecord]:
        prefix = self.spec.block_prefix(layer)
        weights = {n: w.to(self.task.device) for n, w in self.weights.float_block(layer).items()}
        schemes = {linear.name: self.scheme.modules[prefix + linear.name] for linear in self.spec.linears()}
        if quantizer is None:
            block = QuantizedBlock({})
            for name, scheme in schemes.items():
                if scheme.quantized:
                    start = time.monotonic()
                    block.linears[name] = rtn(weights[f"{name}.weight"], scheme)
                    seconds = round(time.monotonic() - start, 4)
                    facts = (scheme.bits, scheme.group_size, scheme.symmetric, None, None, None, seconds)
                    block.records.append(LayerRecord(prefix + name, "rtn", *facts))
        else:
            block = quantizer.quantize(layer, weights, schemes)
        if judge:
            judge.advance(layer, weights, block)
        for name, linear in block.linears.items():
            self._write_linear(prefix + name, linear, writer)
        for name, weight in weights.items():
            if not self.scheme.of(prefix + name.removesuffix(".weight")).quantized:
                writer.write(prefix + name, block.floats.get(name, weight).cpu())
        return block.records

    def _write_linear(self, module: str, linear: QuantizedLinear, writer: CheckpointWriter) -> None:
        if not bool(torch.isfinite(linear.scales).all()):
            raise InputError(
                f"{module}: its weights are too large for scales in float16, which end at 65504. Leave it in float "
                f'(--override "{module}=bits:16"), or look for what made its weights grow.'
            )
        for name, tensor in self.container.pack(module, _on_cpu(linear)).items():
            writer.write(name, tensor)

    def _write_config(self) -> None:
        config = {**self.checkpoint.config, "quantization_config": self.container.quantization_config(self.scheme)}
        copy_companions(self.checkpoint, self.work, config=config_bytes(config))
        for name, content in self.container.extra_files(self.scheme).items():
            (self.work / name).write_bytes(content)
        self.container.finish(self.work)


def kept_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> Iterator[str]:
    """The tensors of a float checkpoint that belong to the model, in the order of its files: a tied lm_head that was saved
    too, and rope buffers, do not."""
    wanted = spec.all_tensors()
    wanted |= {n.removesuffix("weight") + "bias": () for n in wanted if n.endswith("_proj.weight")}
    return (name for name in checkpoint.names if name in wanted)


def _on_cpu(linear: QuantizedLinear) -> QuantizedLinear:
    zeros = None if linear.zeros is None else linear.zeros.cpu()
    return replace(linear, codes=linear.codes.cpu(), scales=linear.scales.cpu(), zeros=zeros)


def _summary(records: list[LayerRecord]) -> str:
    errors = [r.error_after for r in records if r.error_after is not None and math.isfinite(r.error_after)]
    return f"mean error {sum(errors) / len(errors):.2e}" if errors else ""
