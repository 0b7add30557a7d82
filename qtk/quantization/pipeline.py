"""Quantizes a model directory into another, one decoder block in memory at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, ConfigDict

import qtk
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import TokenRows, calibration_rows
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec, copy_companions
from qtk.errors import InputError, MachineError, listing
from qtk.machine import PeakMemory, fast_matmul_dtype, limit_threads
from qtk.models.registry import model_spec
from qtk.models.spec import LM_HEAD, ModelSpec
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import Progress, note
from qtk.quantization.activations import ActivationBudget
from qtk.quantization.block import BlockQuantizer, LayerRecord, Rows, Stream
from qtk.quantization.formats.base import Format, QuantizationScheme
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.resume import ResumeState
from qtk.quantization.rtn import rtn
from qtk.quantization.scheme import LM_HEAD_MODULE, resolve_scheme
from qtk.quantization.target_settings import for_target, require_target

LOG_NAME = "quantization-log.jsonl"
_WORK = ".calibration"  # spilled activations and what a stopped run leaves; removed before the directory is complete


class QuantizeReport(BaseModel):
    """What a quantization did. Sizes in bytes; errors as in the log (shares of output energy)."""

    model_config = ConfigDict(frozen=True)

    output: str
    method: str
    format: str
    bits: int
    group_size: int
    symmetric: bool
    linears: int
    left_in_float: list[str]
    fell_back_to_rtn: list[str]
    calibration_rows: int
    calibration_tokens: int
    compute_dtype: str
    mean_error_before: float | None
    mean_error_after: float | None
    float_bytes: int
    quantized_bytes: int
    seconds: float
    peak_memory_bytes: int
    spilled_bytes: int


def quantize_model(
    model: Path,
    out: Path,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> QuantizeReport:
    """Quantizes the model directory `model` into the new directory `out`.

    A run that is stopped leaves `out`.partial behind, from which `resume` goes on after the last finished block, to the
    same weights bit for bit.

    Raises InputError before any work for an unknown architecture, a model that is quantized already, settings that do
    not fit (all offenders listed) or calibration text that cannot be used; MachineError for a disk without room.
    """
    checkpoint = Checkpoint(model)
    if checkpoint.config.get("quantization_config"):
        raise InputError(f"{model} is quantized already. Quantize the float model that it was made from.")
    spec = model_spec(checkpoint)
    checkpoint.require_shapes(spec.all_tensors())
    options = for_target(options, spec)
    container = checkpoint_format(options.format)
    if reasons := container.checkpoint_refusals(checkpoint):
        raise InputError(f"{model} cannot be stored as {container.name}:\n{listing(reasons)}")
    scheme = resolve_scheme(spec, options, container)
    require_target(options, spec, scheme)
    device = _device(options.device)
    limit_threads(options.threads)
    recorder = ManifestRecorder("quantized-model", {**options.model_dump(), **calibration.model_dump()})
    recorder.add_input("model", model, checkpoint.files)
    rows = None if options.method == "rtn" else _calibration(checkpoint, spec, calibration, recorder)
    staged = staged_directory(out, overwrite=overwrite, resumable=True, fresh=not resume)
    with staged as work, PeakMemory() as memory, torch.inference_mode():
        state = ResumeState(work / _WORK, _deciding_facts(checkpoint, options, rows))
        run = _Run(checkpoint, spec, scheme, container, options, rows, device, work, state)
        try:
            report = run.quantize(memory, out)
        except BaseException:
            if state.blocks == 0:  # nothing worth resuming
                shutil.rmtree(work, ignore_errors=True)
            raise
        (work / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in run.log), encoding="utf-8")
        recorder.notes |= {"report": report.model_dump(), "resolved_group_size": scheme.default.group_size}
        recorder.write(work, out, report.peak_memory_bytes)
    return report


def _deciding_facts(checkpoint: Checkpoint, options: QuantizeOptions, rows: TokenRows | None) -> dict[str, Any]:
    """What decides the weights to the last bit: what a resumed run must have in common with the one that was stopped."""
    tokens = b"" if rows is None else rows.tokens.numpy().tobytes() + rows.lengths.numpy().tobytes()
    return {
        "options": options.model_dump(),
        "model": [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in checkpoint.files],
        "tokens": hashlib.sha256(tokens).hexdigest(),
        "threads": torch.get_num_threads(),
        "versions": [qtk.__version__, torch.__version__],
    }


def _calibration(
    checkpoint: Checkpoint, spec: ModelSpec, options: CalibrationOptions, recorder: ManifestRecorder
) -> TokenRows:
    rows = calibration_rows(TextTokenizer(checkpoint.path), options, options.row_length(spec.max_positions))
    if int(rows.tokens.max()) >= spec.vocab_size:
        raise InputError(
            f"{checkpoint.path}: its tokenizer gives id {int(rows.tokens.max())}, its vocabulary ends at {spec.vocab_size - 1}."
        )
    widest = max(linear.in_features for linear in spec.linears())
    if rows.token_count < widest:
        note(
            f"WARNING: {rows.token_count} calibration tokens for linears of up to {widest} inputs: their Hessian is singular "
            f"and rests on damping. Use at least {4 * widest} tokens (--samples, --seq-len)."
        )
    if Path(options.calibration).is_file():
        recorder.add_input("calibration", Path(options.calibration), [Path(options.calibration)])
    return rows


class _Run:
    """One quantization under way."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        scheme: QuantizationScheme,
        container: Format,
        options: QuantizeOptions,
        rows: TokenRows | None,
        device: torch.device,
        work: Path,
        state: ResumeState,
    ) -> None:
        self.checkpoint, self.spec, self.scheme, self.container = checkpoint, spec, scheme, container
        self.options, self.rows, self.device, self.work = options, rows, device, work
        self.weights = ModelWeights(checkpoint, spec)
        self.compute_dtype = (
            (fast_matmul_dtype() if device.type == "cpu" else torch.bfloat16) if rows else torch.float32
        )
        self.state = state
        self.log: list[dict[str, Any]] = list(state.log)

    def quantize(self, memory: PeakMemory, out: Path) -> QuantizeReport:
        """Writes the whole checkpoint into the work directory."""
        start = time.monotonic()
        limit = self.options.memory * 1e9 if self.options.memory else psutil.virtual_memory().total / 4
        budget = ActivationBudget(int(limit), self.work / _WORK)
        done = self.state.blocks
        with CheckpointWriter(self.work, self._output_specs(), resume=done > 0) as writer:
            self._copy_float_tensors(writer)
            quantizer = self._block_quantizer(budget)
            streams = [stream.hidden for stream in quantizer.streams] if quantizer else []
            if done:
                self.state.load(streams)
                finished = tuple(self.spec.block_prefix(layer) for layer in range(done))
                writer.mark_written(*(name for name in writer.specs if name.startswith(finished)))
                note(f"Resumed after block {done} of {self.spec.num_layers}.")
            with Progress("quantize", self.spec.num_layers - done, "block") as progress:
                for layer in range(done, self.spec.num_layers):
                    records = self._quantize_block(layer, quantizer, writer)
                    self._log(records, memory)
                    self.state.save(layer + 1, streams, self.log, writer.descriptors)
                    progress.advance(1, _summary(records))
        self.state.remove()
        self._write_config()
        return self._report(out, time.monotonic() - start, memory, budget)

    def _output_specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the output, in the order of the input's files."""
        specs: dict[str, TensorSpec] = {}
        for name in self._kept_tensors():
            module = name.removesuffix(".weight")
            scheme = self.scheme.modules.get(module)
            info = self.checkpoint.info(name)
            if scheme is None or scheme.bits == 16 or not name.endswith(".weight"):
                specs[name] = TensorSpec(info.dtype, info.shape)
            else:
                specs |= self.container.specs(module, (info.shape[0], info.shape[1]), scheme)
        return specs

    def _kept_tensors(self) -> Iterator[str]:
        """The tensors of the input that belong to the model: a tied lm_head that was saved too, and rope buffers, do not."""
        wanted = self.spec.all_tensors()
        wanted |= {n.removesuffix("weight") + "bias": () for n in wanted if n.endswith("_proj.weight")}
        return (name for name in self.checkpoint.names if name in wanted)

    def _quantized(self, module: str) -> bool:
        scheme = self.scheme.modules.get(module)
        return scheme is not None and scheme.bits < 16

    def _copy_float_tensors(self, writer: CheckpointWriter) -> None:
        for name in self._kept_tensors():
            if not (name.endswith(".weight") and self._quantized(name.removesuffix(".weight"))):
                writer.write(name, self.checkpoint.tensor(name, finite=True))
        if self._quantized(LM_HEAD_MODULE):
            scheme = self.scheme.modules[LM_HEAD_MODULE]
            head = rtn(
                self.checkpoint.tensor(LM_HEAD, finite=True),
                scheme.group_size,
                symmetric=scheme.symmetric,
                bits=scheme.bits,
            )
            self._write_linear(LM_HEAD_MODULE, head, writer)

    def _block_quantizer(self, budget: ActivationBudget) -> BlockQuantizer | None:
        """The quantizer with the embedded calibration rows; None for a method that needs no calibration."""
        if self.rows is None:
            return None
        count, seq_len = self.rows.tokens.shape
        cos, sin = (t.to(self.device) for t in self.spec.rope.tables(self.spec.head_dim, seq_len))
        streams = []
        for _ in range(1 if self.options.effort == "fast" else 2):
            hidden = budget.store(count, seq_len, self.spec.hidden_size, self.compute_dtype)
            for chunk in hidden.chunks():
                hidden.write(chunk, self.weights.embed(self.rows.tokens[chunk], self.compute_dtype))
            streams.append(Stream(hidden))
        rows = Rows(self.rows.keep() if self.rows.padded else None, cos, sin)
        return BlockQuantizer(self.spec, rows, budget, self.device, *streams)

    def _quantize_block(
        self, layer: int, quantizer: BlockQuantizer | None, writer: CheckpointWriter
    ) -> list[LayerRecord]:
        prefix = self.spec.block_prefix(layer)
        weights = {n: w.to(self.device) for n, w in self.weights.float_block(layer).items()}
        schemes = {linear.name: self.scheme.modules[prefix + linear.name] for linear in self.spec.linears()}
        records: list[LayerRecord] = []
        if quantizer is None:
            results = {}
            for name, scheme in schemes.items():
                if scheme.bits < 16:
                    start = time.monotonic()
                    results[name] = rtn(
                        weights[f"{name}.weight"], scheme.group_size, symmetric=scheme.symmetric, bits=scheme.bits
                    )
                    seconds = round(time.monotonic() - start, 4)
                    facts = (scheme.bits, scheme.group_size, scheme.symmetric, None, None, None, seconds)
                    records.append(LayerRecord(prefix + name, "rtn", *facts))
        else:
            results, records = quantizer.quantize(layer, weights, schemes)
        for name, linear in results.items():
            self._write_linear(prefix + name, linear, writer)
        return records

    def _write_linear(self, module: str, linear: QuantizedLinear, writer: CheckpointWriter) -> None:
        for name, tensor in self.container.pack(module, linear).items():
            writer.write(name, tensor)

    def _log(self, records: list[LayerRecord], memory: PeakMemory) -> None:
        self.log += [{**asdict(record), "peak_memory_bytes": memory.peak_bytes} for record in records]

    def _write_config(self) -> None:
        config = {**self.checkpoint.config, "quantization_config": self.container.quantization_config(self.scheme)}
        copy_companions(self.checkpoint, self.work, config=(json.dumps(config, indent=2) + "\n").encode())
        for name, content in self.container.extra_files(self.scheme).items():
            (self.work / name).write_bytes(content)
        self.container.finish(self.work)

    def _report(self, out: Path, seconds: float, memory: PeakMemory, budget: ActivationBudget) -> QuantizeReport:
        def mean(key: str) -> float | None:
            values = [line[key] for line in self.log if line[key] is not None]
            return sum(values) / len(values) if values else None

        with closing(Checkpoint(self.work)) as written:
            quantized_bytes = sum(written.info(name).nbytes for name in written.names)
        return QuantizeReport(
            output=str(out),
            method=self.options.method,
            format=self.container.name,
            bits=self.scheme.default.bits,
            group_size=self.scheme.default.group_size,
            symmetric=self.scheme.default.symmetric,
            linears=len(self.log),
            left_in_float=[name for name, s in self.scheme.modules.items() if s.bits == 16],
            fell_back_to_rtn=[line["layer"] for line in self.log if line["method"] != self.options.method],
            calibration_rows=0 if self.rows is None else self.rows.tokens.shape[0],
            calibration_tokens=0 if self.rows is None else self.rows.token_count,
            compute_dtype=str(self.compute_dtype).removeprefix("torch."),
            mean_error_before=mean("error_before"),
            mean_error_after=mean("error_after"),
            float_bytes=sum(self.checkpoint.info(name).nbytes for name in self._kept_tensors()),
            quantized_bytes=quantized_bytes,
            seconds=round(seconds, 2),
            peak_memory_bytes=memory.peak_bytes,
            spilled_bytes=budget.spilled_bytes,
        )


def _summary(records: list[LayerRecord]) -> str:
    errors = [r.error_after for r in records if r.error_after is not None]
    return f"mean error {sum(errors) / len(errors):.2e}" if errors else ""


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"--device {name}: torch sees no GPU on this machine. Use --device cpu.")
    return torch.device(name)
