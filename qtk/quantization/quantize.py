"""Quantizes a model directory into another: what can be refused is refused before any work, what was written is read back."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import TokenRows
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.reader import Checkpoint, total_bytes
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.checkpoint.staging import Resumption, partial_path, staged_directory, sync_tree
from qtk.errors import InputError, MachineError, listing
from qtk.machine import (
    ThreadChoice,
    available_memory,
    keep_freed_memory,
    limit_threads,
    processor_name,
    total_memory,
    unhindered_threads,
)
from qtk.models.registry import model_spec
from qtk.peak_memory import PeakMemory, resident_bytes
from qtk.progress import Progress, note, warn, warnings_so_far
from qtk.quantization.calibration_text import CalibrationText, calibration_file, calibration_text
from qtk.quantization.card import QuantizedCard, write_quantized_card
from qtk.quantization.checkpoint_run import QuantizationTask
from qtk.quantization.checkpoint_writer import written_bytes
from qtk.quantization.compute import compute_device, compute_dtype
from qtk.quantization.formats.base import Format
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.memory_need import Work, activation_bytes, memory_need
from qtk.quantization.method_choice import MethodChoice, methods_tried, quantize_by
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.read_back import read_back, room_for_texts
from qtk.quantization.report import LOG_NAME, QuantizeReport
from qtk.quantization.resume import begin
from qtk.quantization.scheme_model import QuantizationScheme
from qtk.quantization.target_settings import for_target, settled_scheme
from qtk.quantization.unfinished import WORK, unfinished_quantization, worth_resuming
from qtk.sizes import size_text
from qtk.targets.gpu import is_profile_file
from qtk.targets.serving import StoredAs, loading_runtimes, serving_line

# What other tools write beside, or in, the config.json of a model that they quantized.
_QUANTIZED_KEYS = ("quantization_config", "compression_config")
_QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True)
class Settled:
    """The options with nothing left at "auto", and what follows from them."""

    options: QuantizeOptions
    container: Format
    scheme: QuantizationScheme
    device: torch.device
    threads: int


def quantize_model(
    model: Path,
    out: Path,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> QuantizeReport:
    """Quantizes `model`, a directory or an id of the hub, into the new directory `out`.

    A run that is stopped leaves `out`.partial behind, from which `resume` goes on after the last finished block, to the
    same weights bit for bit.

    Raises InputError before any work for an unknown architecture, a model that is quantized already, settings that do
    not fit (all offenders listed) or calibration text that cannot be used; MachineError for a disk without room.
    """
    warned = warnings_so_far()
    model = model_directory(model)
    source = open_float_model(model)
    settled = _settle(source, options, _threads_of_unfinished(out) if resume and not options.threads else 0)
    recorder = ManifestRecorder(
        "quantized-model",
        {**settled.options.model_dump(), **calibration.model_dump()},
        settled.threads,
        warned=warned,
    )
    recorder.add_input("model", model, source.checkpoint.files)
    if options.gpu is not None and is_profile_file(options.gpu):
        recorder.add_input("GPU profile", Path(options.gpu), [Path(options.gpu)])
    text = calibration_text(source, settled.options, calibration)
    text_file = calibration_file(settled.options, calibration)
    if text_file is not None:
        recorder.add_input("calibration", text_file, [text_file])
    inputs = [model] if text_file is None else [model, text_file]
    _require_disk(out, source, settled, text)
    facts = _deciding_facts(source.checkpoint, settled, calibration, text)
    staged = staged_directory(
        out, overwrite=overwrite, resumption=Resumption(resume, facts, unfinished_quantization), inputs=inputs
    )
    with staged as work, _kept_if_worth_it(work), PeakMemory() as memory, torch.no_grad():
        task = _task(work, source, settled, text, facts, calibration.seed)
        choice = quantize_by(settled.options.method, task, work, memory)
        source.checkpoint.require_unchanged()
        report = _read_back_and_report(work, out, task, text, choice, memory, settled.options).model_copy(
            update={
                "serve": _serving_line(settled, out),
                "runtimes": [runtime.title for runtime in loading_runtimes(_stored_as(settled, out.name))],
            }
        )
        write_quantized_card(work, source.checkpoint, _card(out.name, report, settled, calibration))
        recorder.notes |= {"report": report.model_dump(), "resolved_group_size": settled.scheme.default.group_size}
        container = settled.container
        container.complete(work, out.name, settled.scheme)
        with Progress("digest files", None):
            recorder.digest(work, leave_out=(work / WORK, *container.working_files(work)))
            sync_tree(work)
        remove = (work / WORK, *container.working_files(work))
        recorder.write(work, out, report.peak_memory_bytes, remove=remove)
    return report


def _threads_of_unfinished(out: Path) -> int:
    """How many threads the stopped run computed with; 0 where there is none, or it does not say."""
    work = unfinished_quantization(partial_path(out))
    return work.begun.threads if work else 0


def open_float_model(model: Path) -> ModelWeights:
    """The float model in a directory. InputError for a model that is quantized already, whichever file says so, and for
    what is not a model that qtk knows."""
    checkpoint = Checkpoint(model)
    signs = [f"config.json ({key})" for key in _QUANTIZED_KEYS if checkpoint.config.get(key)]
    signs += [name for name in _QUANTIZED_FILES if (checkpoint.path / name).is_file()]
    if signs:
        raise InputError(
            f"{checkpoint.path} is quantized already, says its {' and '.join(signs)}. "
            "Quantize the float model that it was made from."
        )
    spec = model_spec(checkpoint)
    checkpoint.require_tensors(spec.all_tensors())
    return ModelWeights.of_floats(checkpoint, spec)


def _settle(source: ModelWeights, options: QuantizeOptions, begun_with: int) -> Settled:
    """Decides what the options leave open, and sets this process up to compute. begun_with: the threads of the run that is
    resumed, which decide its last bits (0: none is). InputError with all reasons why the model cannot be quantized like that."""
    options = for_target(options, source.spec)
    container = checkpoint_format(options.container)
    scheme = settled_scheme(source.checkpoint, source.spec, options, container)
    device = compute_device(options.device)
    choice = ThreadChoice(begun_with) if begun_with else unhindered_threads(options.threads)
    threads = limit_threads(choice.threads)
    if choice.sentence:
        note(choice.sentence)
    if options.threads and options.threads > threads:
        warn(
            f"--threads {options.threads}: this process may use {threads} cores, so it computes with {threads} threads."
        )
    keep_freed_memory()
    return Settled(options, container, scheme, device, threads)


def _task(
    work: Path,
    source: ModelWeights,
    settled: Settled,
    text: CalibrationText,
    facts: Mapping[str, Any],
    seed: int,
) -> QuantizationTask:
    """The task to do in `work`: begun now, or as the run began that is resumed."""
    name = begin(
        work,
        facts,
        blocks=source.spec.num_layers * methods_tried(settled.options.method),
        threads=settled.threads,
        compute_dtype=lambda: _dtype_name(compute_dtype(settled.device) if text.rows is not None else torch.float32),
    )
    dtype: torch.dtype = getattr(torch, name)
    room = _activation_bytes(source, settled, text, dtype)
    return QuantizationTask(
        source=source,
        scheme=settled.scheme,
        container=settled.container,
        effort=settled.options.effort,
        rows=text.rows,
        judged_on=text.held_back,
        device=settled.device,
        compute_dtype=dtype,
        activation_bytes=room,
        seed=seed,
    )


def _activation_bytes(source: ModelWeights, settled: Settled, text: CalibrationText, dtype: torch.dtype) -> int:
    """What activations may take in memory. MachineError where the run does not fit into what it is given."""
    options, sizes = settled.options, [0] if text.rows is None else list(text.rows.tokens.shape)
    stored = max(source.checkpoint.info(name).dtype.itemsize for name in source.kept_tensors())
    work = Work(options.method, options.effort, math.prod(sizes), sizes[-1], dtype.itemsize, stored)
    need = memory_need(source.spec, settled.scheme, work, resident_bytes())
    return activation_bytes(need, options.memory, total=total_memory(), available=available_memory())


def _require_disk(out: Path, source: ModelWeights, settled: Settled, text: CalibrationText) -> None:
    """MachineError, with both figures, where the disk has no room for the output and what the run puts beside it."""
    written = written_bytes(settled.container, settled.scheme, source) * methods_tried(settled.options.method)
    rows = (
        0 if text.rows is None else text.rows.tokens.numel() + (text.held_back.tokens.numel() if text.held_back else 0)
    )
    streams = 1 if settled.options.effort == "fast" else 2
    # The state of the block before stands until that of the block is complete; what a block spills is as wide as its widest.
    widths = 2 * source.spec.hidden_size + source.spec.intermediate_size
    scratch = rows * streams * widths * torch.float32.itemsize
    partial = partial_path(out)
    held = sum(path.stat().st_blocks * 512 for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    place = next(parent for parent in out.absolute().parents if parent.exists())
    usage = shutil.disk_usage(place)
    free = usage.free + held
    if usage.total and written + scratch > free:
        raise MachineError(
            f"{place}: the output takes {size_text(written)} and the activations of a run at most {size_text(scratch)} beside "
            f"it, and the disk has {size_text(free)} free. Free some room, write to another disk, or give fewer rows "
            "(--samples, --seq-len)."
        )


def _deciding_facts(
    checkpoint: Checkpoint, settled: Settled, calibration: CalibrationOptions, text: CalibrationText
) -> dict[str, Any]:
    """What decides the weights to the last bit, by the name that a refusal calls it: what a resumed run must have in
    common with the run that was stopped. --memory is not among it: activations on disk give the same bits."""
    deciding = settled.options.model_dump(exclude={"memory", "threads", "device", "texts"})
    return {
        **{f"--{name.replace('_', '-')}": value for name, value in deciding.items()},
        "--seed": calibration.seed,
        "model": [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in checkpoint.files],
        "calibration text": [_token_digest(text.rows), _token_digest(text.held_back)],
        "device": str(settled.device),
        "processor": processor_name(),
        "number of threads": torch.get_num_threads(),
        "version of qtk's algorithms or of torch": [RESULT_VERSIONS["quantize"], torch.__version__],
    }


def _token_digest(rows: TokenRows | None) -> str:
    if rows is None:
        return ""
    return hashlib.sha256(rows.tokens.numpy().tobytes() + rows.lengths.numpy().tobytes()).hexdigest()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _kept_if_worth_it(work: Path) -> Iterator[None]:
    """Removes the unfinished directory after a failure that left no finished block in it."""
    try:
        yield
    except BaseException:
        if not worth_resuming(work):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _read_back_and_report(
    work: Path,
    out: Path,
    task: QuantizationTask,
    text: CalibrationText,
    choice: MethodChoice,
    memory: PeakMemory,
    options: QuantizeOptions,
) -> QuantizeReport:
    """Reads what was written back, writes the log, and reports on the whole. `out` is the later name of `work`."""
    start = time.monotonic()
    check = read_back(work, task, text_room=room_for_texts(task.source.spec, options.texts, options.memory))
    run, log, default = choice.run, choice.run.log, task.scheme.default
    fell_back = [record.layer for record in log if record.method != run.method]
    if fell_back:
        warn(
            f"{len(fell_back)} of {len(log)} linears were rounded to nearest, because the method failed on them:\n"
            f"{listing(fell_back)}"
        )
    (work / LOG_NAME).write_text("".join(json.dumps(record.model_dump()) + "\n" for record in log), encoding="utf-8")
    with closing(Checkpoint(work)) as written:
        quantized_bytes = sum(path.stat().st_size for path in work.glob("*.gguf")) or total_bytes(written)
    return QuantizeReport(
        output=str(out),
        method=run.method,
        format=task.container.name,
        bits=default.bits,
        group_size=default.group_size,
        symmetric=default.symmetric,
        linears=len(log),
        left_in_float=[name for name, linear in task.scheme.modules.items() if not linear.quantized],
        fell_back_to_rtn=fell_back,
        calibration_rows=text.rows_read,
        calibration_rows_offered=text.offered,
        calibration_tokens=text.tokens_read,
        compute_dtype=run.compute_dtype,
        mean_error_before=_mean(record.error_before for record in log),
        mean_error_after=_mean(record.error_after for record in log),
        float_bytes=total_bytes(task.source.checkpoint, task.source.kept_tensors()),
        quantized_bytes=quantized_bytes,
        seconds=round(run.seconds + time.monotonic() - start, 2),
        peak_memory_bytes=max(run.peak_memory_bytes, memory.peak_bytes),
        activation_bytes=run.activation_bytes,
        spilled_bytes=run.spilled_bytes,
        held_back_kl={m: kl for m, kl in choice.held_back_kl.items() if kl is not None and math.isfinite(kl)},
        read_back=check,
    )


def _stored_as(settled: Settled, name: str) -> StoredAs:
    scheme, container = settled.scheme.default, settled.container
    return StoredAs(
        container.name,
        scheme.bits,
        scheme.group_size,
        scheme.symmetric,
        scheme.signed_scales,
        container.file_name(name, settled.scheme),
    )


def _serving_line(settled: Settled, out: Path) -> str | None:
    options = settled.options
    return serving_line(_stored_as(settled, out.name), str(out), gpu=options.gpu, backend=options.backend)


def _card(name: str, report: QuantizeReport, settled: Settled, calibration: CalibrationOptions) -> QuantizedCard:
    options = settled.options
    return QuantizedCard(name, report, _stored_as(settled, name), calibration.calibration, options.gpu, options.backend)


def _mean(figures: Iterable[float | None]) -> float | None:
    known: list[float] = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None
