"""Quantizes a model directory into another: what can be refused is refused before any work, what was written is read back."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

import qtk
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import TokenRows, calibration_rows
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.staging import staged_directory, sync_tree
from qtk.errors import InputError, MachineError
from qtk.machine import (
    available_memory,
    fast_matmul_dtype,
    keep_freed_memory,
    limit_threads,
    processor_name,
    total_memory,
)
from qtk.models.registry import model_spec
from qtk.models.spec import ModelSpec
from qtk.models.tokenizer import TextTokenizer
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress, note
from qtk.quantization.checkpoint_run import Outcome, QuantizationTask, kept_tensors
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.method_choice import MethodRuns
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.read_back import ReadBack, read_back
from qtk.quantization.resume import WORK, begin, remove_work, worth_resuming
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.quantization.target_settings import for_target, settled_scheme

LOG_NAME = "quantization-log.jsonl"
# What other tools write beside, or in, the config.json of a model that they quantized.
_QUANTIZED_KEYS = ("quantization_config", "compression_config")
_QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
# Time grows with the rows, quality far slower: half of them lose an eighth of KL, and less than the float stream gains.
_SHARE_OF_ROWS = {"fast": 0.25, "default": 0.5, "best": 1.0}


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
    calibration_rows_offered: int
    calibration_tokens: int
    compute_dtype: str
    mean_error_before: float | None
    mean_error_after: float | None
    float_bytes: int
    quantized_bytes: int
    seconds: float
    peak_memory_bytes: int
    spilled_bytes: int
    # With --method auto: nats per token from the float model on the rows held back, by method.
    held_back_kl: dict[str, float]
    read_back: ReadBack


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
    require_float(checkpoint)
    spec = model_spec(checkpoint)
    checkpoint.require_shapes(spec.all_tensors())
    options = for_target(options, spec)
    container = checkpoint_format(options.format)
    scheme = settled_scheme(checkpoint, spec, options, container)
    device = compute_device(options.device)
    threads = limit_threads(options.threads)
    if options.threads and options.threads > threads:
        note(
            f"--threads {options.threads}: this process may use {threads} cores, so it computes with {threads} threads."
        )
    keep_freed_memory()
    recorder = ManifestRecorder("quantized-model", {**options.model_dump(), **calibration.model_dump()}, threads)
    recorder.add_input("model", model, checkpoint.files)
    rows, judged_on, offered = None, None, 0
    if options.method != "rtn":
        held_back = _held_back(calibration) if options.method == "auto" else 0
        rows, judged_on = _calibration(checkpoint, spec, calibration, held_back, recorder)
        offered, rows = len(rows.lengths), _rows_for(options.effort, rows, spec)
    facts = _deciding_facts(checkpoint, options, calibration, rows, judged_on, device)
    inputs = [model, *([Path(calibration.calibration)] if Path(calibration.calibration).is_file() else [])]
    staged = staged_directory(out, overwrite=overwrite, resumable=True, fresh=not resume, inputs=inputs)
    with staged as work, _kept_if_worth_it(work), PeakMemory() as memory, torch.no_grad():
        dtype = getattr(torch, begin(work, facts, lambda: _compute_dtype(device, rows)))
        task = QuantizationTask(
            checkpoint, spec, scheme, container, options, rows, judged_on, device, dtype, calibration.seed
        )
        runs = MethodRuns(task, memory)
        outcome = runs.better(work) if options.method == "auto" else runs.run(options.method, work)
        start = time.monotonic()
        check = read_back(
            work,
            scheme,
            ModelWeights.of_floats(checkpoint, spec),
            rows,
            limit_bytes=min(total_memory() // 8, available_memory() // 2),
            container=container,
        )
        (work / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in outcome.log), encoding="utf-8")
        report = _report(
            work,
            scheme,
            rows,
            outcome,
            check,
            output=str(out),
            calibration_rows_offered=offered,
            format=container.name,
            float_bytes=sum(checkpoint.info(name).nbytes for name in kept_tensors(checkpoint, spec)),
            seconds=round(outcome.seconds + time.monotonic() - start, 2),
            peak_memory_bytes=max(outcome.peak_memory_bytes, memory.peak_bytes),
            held_back_kl=runs.held_back_kl,
        )
        recorder.notes |= {"report": report.model_dump(), "resolved_group_size": scheme.default.group_size}
        # What takes its time comes before the state goes: without it a stopped run would begin again.
        with Progress("digest files", None):
            recorder.digest(work, leave_out=work / WORK)
            sync_tree(work)
        remove_work(work)
        recorder.write(work, out, report.peak_memory_bytes)
    return report


def require_float(checkpoint: Checkpoint) -> None:
    """InputError for a model that is quantized already, whichever file says so."""
    config = checkpoint.config
    says = [f"config.json ({key})" for key in _QUANTIZED_KEYS if config.get(key)]
    says += [name for name in _QUANTIZED_FILES if (checkpoint.path / name).is_file()]
    if says:
        raise InputError(
            f"{checkpoint.path} is quantized already, says its {' and '.join(says)}. "
            "Quantize the float model that it was made from."
        )


@contextmanager
def _kept_if_worth_it(work: Path) -> Iterator[None]:
    """Removes the unfinished directory after a failure that left no finished block in it."""
    try:
        yield
    except BaseException:
        if not worth_resuming(work):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _deciding_facts(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    rows: TokenRows | None,
    judged_on: TokenRows | None,
    device: torch.device,
) -> dict[str, Any]:
    """What decides the weights to the last bit, by the name that a refusal calls it: what a resumed run must have in
    common with the one that was stopped. --memory is none of it: activations on disk give the same bits."""
    options_left = options.model_dump(exclude={"memory", "threads", "device"})
    return {
        **{f"--{name.replace('_', '-')}": value for name, value in options_left.items()},
        "--seed": calibration.seed,
        "model": [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in checkpoint.files],
        "calibration text": [_token_digest(rows), _token_digest(judged_on)],
        "device": str(device),
        "processor": processor_name(),
        "number of threads": torch.get_num_threads(),
        "version of qtk or torch": [qtk.__version__, torch.__version__],
    }


def _token_digest(rows: TokenRows | None) -> str:
    return (
        ""
        if rows is None
        else hashlib.sha256(rows.tokens.numpy().tobytes() + rows.lengths.numpy().tobytes()).hexdigest()
    )


def _compute_dtype(device: torch.device, rows: TokenRows | None) -> str:
    """The dtype of activations and their products: bfloat16 where it is fast, or else float32."""
    if rows is None:
        dtype = torch.float32
    elif device.type == "cpu":
        dtype = fast_matmul_dtype()
    else:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return str(dtype).removeprefix("torch.")


def _held_back(calibration: CalibrationOptions) -> int:
    """Rows beside those asked for on which --method auto compares the methods."""
    return max(2, calibration.samples // 8)


def _calibration(
    checkpoint: Checkpoint, spec: ModelSpec, options: CalibrationOptions, held_back: int, recorder: ManifestRecorder
) -> tuple[TokenRows, TokenRows | None]:
    """The rows to calibrate on, and those that are held back from it (None for 0)."""
    wanted = options.model_copy(update={"samples": options.samples + held_back})
    with Progress("read calibration text", None):
        rows = calibration_rows(TextTokenizer(checkpoint.path), wanted, options.row_length(spec.max_positions))
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
    if not held_back:
        return rows, None
    count = len(rows.lengths)
    if count < 4:
        raise InputError(
            f"{options.calibration} gives {count} rows; --method auto needs 4 at least, to hold some back. Use --method gptq."
        )
    return rows.split(count - min(held_back, count // 4))


def _rows_for(effort: str, rows: TokenRows, spec: ModelSpec) -> TokenRows:
    """The rows that an effort reads, evenly spaced: a share of them, but three tokens at least for each column of the
    widest linear, so that its Hessian does not rest on damping."""
    count = len(rows.lengths)
    needed = 3 * max(linear.in_features for linear in spec.linears()) * count / rows.token_count
    used = min(count, max(math.ceil(needed), math.ceil(_SHARE_OF_ROWS[effort] * count)))
    return rows.pick([index * count // used for index in range(used)])


def _report(
    work: Path,
    scheme: QuantizationScheme,
    rows: TokenRows | None,
    outcome: Outcome,
    check: ReadBack,
    **facts: Any,
) -> QuantizeReport:
    def mean(key: str) -> float | None:
        values = [line[key] for line in outcome.log if line[key] is not None]
        return sum(values) / len(values) if values else None

    with closing(Checkpoint(work)) as written:
        quantized_bytes = sum(written.info(name).nbytes for name in written.names)
    return QuantizeReport(
        method=outcome.method,
        bits=scheme.default.bits,
        group_size=scheme.default.group_size,
        symmetric=scheme.default.symmetric,
        linears=len(outcome.log),
        left_in_float=[name for name, s in scheme.modules.items() if not s.quantized],
        fell_back_to_rtn=[line["layer"] for line in outcome.log if line["method"] != outcome.method],
        calibration_rows=0 if rows is None else rows.tokens.shape[0],
        calibration_tokens=0 if rows is None else rows.token_count,
        compute_dtype=outcome.compute_dtype,
        mean_error_before=mean("error_before"),
        mean_error_after=mean("error_after"),
        quantized_bytes=quantized_bytes,
        spilled_bytes=outcome.spilled_bytes,
        read_back=check,
        **facts,
    )


def compute_device(name: str) -> torch.device:
    """The device that --device names. InputError for what is no device, MachineError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not found:
        raise InputError(f"--device {name}: there are auto, cpu, cuda, and cuda:N for GPU number N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(found.group(1) or 0) >= count:
        seen = f"{count} GPU{'s' if count > 1 else ''}, the first is cuda:0" if count else "no GPU"
        raise MachineError(f"--device {name}: torch sees {seen} on this machine. Use --device cpu.")
    return torch.device(name)
